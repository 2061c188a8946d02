//! Spans: what an RPC, a job and its steps do from their beginning to their end, and the trace that they belong to.
//!
//! A job's span follows the RPC that asked for it, also after a restart: the job keeps where it belongs.

use tracing::field::Empty;
use tracing::{Span, debug_span, error_span, info_span};

use crate::model::{Job, TraceParent};

/// The span of a call, at the level debug for one that only reads: whoever waits makes those all the time.
/// Also gives what follows from the call: the span itself where it is exported, or else the caller's.
pub fn rpc(method: &str, changes: bool, caller: Option<TraceParent>) -> (Span, Option<TraceParent>) {
    let span =
        if changes { info_span!("rpc", method, trace = Empty) } else { debug_span!("rpc", method, trace = Empty) };
    let onward = belongs(&span, caller);
    (span, onward)
}

pub fn job(job: &Job) -> Span {
    // Of the level error, so that also where only errors are logged each line about the job names it.
    let span = error_span!(parent: None, "job", job = %job.id, share = %job.share, trace = Empty);
    belongs(&span, job.trace);
    span
}

pub fn step(name: &str) -> Span {
    error_span!("step", step = name)
}

/// The span at hand is one of a job that failed: whoever looks at traces sees it marked.
pub fn failed(job: &Job) {
    #[cfg(feature = "otlp")]
    super::otlp::mark_failed(&Span::current(), job.error.as_ref().map_or("", |error| error.reason.as_str()));
    let _ = job;
}

/// Makes the span part of its caller's trace, and gives what follows from it.
fn belongs(span: &Span, caller: Option<TraceParent>) -> Option<TraceParent> {
    #[cfg(feature = "otlp")]
    super::otlp::follow(span, caller);
    #[cfg(feature = "otlp")]
    let caller = super::otlp::exported(span).or(caller);
    if let Some(trace) = caller {
        span.record("trace", format_args!("{:032x}", trace.trace_id));
    }
    caller
}
