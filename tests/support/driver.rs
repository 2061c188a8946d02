//! A driver of quotas, asked for one share at a time.

use growd::driver::{Driver, DriverError, Observed, Outcome, Problem, Step};
use growd::model::{Bytes, Reason, Refusal, ShareId};

pub const A: &str = "6d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a11";
pub const B: &str = "7d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a12";
pub const C: &str = "8d0ad3f4-7c5e-4c0e-9a3e-0c2d2f7c9a13";

pub fn id(text: &str) -> ShareId {
    text.parse().unwrap()
}

pub trait OfOneShare: Driver {
    fn observe(&self, share: ShareId) -> Result<Observed, DriverError> {
        self.observe_all(&[share]).remove(0)
    }

    fn verify(&self, share: ShareId) -> Result<Bytes, DriverError> {
        self.verify_all(&[share]).remove(0)
    }
}

impl<D: Driver + ?Sized> OfOneShare for D {}

pub fn problems(driver: &impl Driver, share: &str) -> Vec<Problem> {
    driver.observe(id(share)).unwrap().problems
}

pub fn reasons(driver: &impl Driver, share: &str) -> Vec<Reason> {
    problems(driver, share).iter().map(|problem| problem.kind).collect()
}

pub fn set(driver: &impl Driver, share: &str, bytes: u64) -> Result<Outcome, DriverError> {
    driver.apply(id(share), Step::SetLimit { to: Bytes::new(bytes) })
}

#[track_caller]
pub fn refused<T>(result: Result<T, DriverError>) -> Refusal {
    match result {
        Err(DriverError::Refused(refusal)) => refusal,
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it worked"),
    }
}
