//! One record for each change that was accepted or refused: target "audit", with fields and not prose.
//!
//! Callers without the role are turned away before this, with a record of their own: see [`super::gate`].

use tracing::info;

use super::peer::Peer;
use super::proto;
use crate::model::{Job, JobKind, Refusal};

/// A field that a caller chose is cut to this.
const TEXT_MOST: usize = 255;

/// A check that changes nothing leaves no record.
pub fn resize(who: &Peer, kind: JobKind, request: &proto::ExtendShareRequest, answer: &Result<Job, Refusal>) {
    if request.validate_only {
        return;
    }
    let (change, new_size) = (kind.as_str(), request.new_size_bytes);
    let (share, project) = (cut(&request.share_id), cut(&request.project_id));
    let request_id = cut(request.request_id.as_deref().unwrap_or_default());
    match answer {
        Ok(job) => info!(
            target: "audit", change, %who, share, size = job.size_before.get(), new_size, project, request_id,
            job = %job.id, outcome = "accepted", "{change} accepted"
        ),
        Err(refusal) => info!(
            target: "audit", change, %who, share, new_size, project, request_id, outcome = "refused",
            reason = refusal.reason().as_str(), "{change} refused: {refusal}"
        ),
    }
}

pub fn cancel(who: &Peer, request: &proto::CancelJobRequest, answer: &Result<Job, Refusal>) {
    match answer {
        Ok(job) => info!(
            target: "audit", change = "cancel", %who, share = %job.share, size = job.size_before.get(),
            new_size = job.requested_size.get(), project = job.project.as_str(), job = %job.id, outcome = "accepted",
            "cancel accepted"
        ),
        Err(refusal) => info!(
            target: "audit", change = "cancel", %who, job = cut(&request.job_id), outcome = "refused",
            reason = refusal.reason().as_str(), "cancel refused: {refusal}"
        ),
    }
}

fn cut(text: &str) -> &str {
    text.char_indices().nth(TEXT_MOST).map_or(text, |(end, _)| &text[..end])
}
