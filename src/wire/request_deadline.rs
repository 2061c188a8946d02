//! Ends requests that do not come whole in time: each takes memory, and one of the streams of its connection.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Bytes, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

use super::limits::REQUEST_LIMIT;

/// The body of a request, which ends with an error when its time is over.
pub struct InTime {
    body: Body,
    /// From when it was first waited for: most requests are there at once, and need no timer.
    patience: Option<Pin<Box<Sleep>>>,
}

impl InTime {
    pub fn body(body: Body) -> Body {
        Body::new(Self { body, patience: None })
    }
}

impl hyper::body::Body for InTime {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(REQUEST_LIMIT)));
        patience.as_mut().poll(cx).map(|()| {
            let problem = format!("the request has not come whole within {} s", REQUEST_LIMIT.as_secs());
            Some(Err(Status::deadline_exceeded(problem)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
