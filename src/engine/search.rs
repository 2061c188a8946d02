//! The search for the pool that has a share: all are asked at once, and one that does not answer hides no other.

use std::future::Future;
use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::LOOK_MOST;
use super::pools::{Pool, in_two_pools};
use crate::model::{Refusal, ShareId};

/// A share that was found.
pub struct Found<T> {
    pub pool: Arc<Pool>,
    pub answer: T,
    /// All other pools say that they do not have it.
    pub in_no_other: bool,
}

/// Whether it says nothing of the share, then the place of its pool in the configuration: whichever answers first, the
/// caller is told the same.
type Weight = (bool, usize);

/// What the pools have answered so far.
struct Answers<T> {
    share: ShareId,
    found: Option<(Arc<Pool>, T)>,
    /// What one said that could not tell whether it has the share, and how little that counts.
    undecided: Option<(Weight, Refusal)>,
}

/// # Errors
/// As [`super::pools::Pools::find`].
pub async fn search<T: Send + 'static, A: Future<Output = Result<T, Refusal>> + Send + 'static>(
    share: ShareId,
    pools: Vec<Arc<Pool>>,
    ask: impl Fn(Arc<Pool>) -> A,
) -> Result<Found<T>, Refusal> {
    let mut asked = JoinSet::new();
    for (place, pool) in pools.iter().enumerate() {
        let (answer, pool) = (ask(Arc::clone(pool)), Arc::clone(pool));
        asked.spawn(async move { (place, pool, answer.await) });
    }
    let mut unanswered = pools;
    let mut answers = Answers { share, found: None, undecided: None };
    let late = sleep(LOOK_MOST);
    tokio::pin!(late);
    loop {
        let is_found = answers.found.is_some();
        if is_found && unanswered.iter().all(|pool| pool.is_silent()) {
            break;
        }
        tokio::select! {
            answered = asked.join_next() => match answered {
                Some(Ok((place, pool, answer))) => {
                    unanswered.retain(|other| !Arc::ptr_eq(other, &pool));
                    answers.take(place, pool, answer)?;
                }
                Some(Err(error)) => answers.cannot_tell(0, Refusal::Internal { problem: error.to_string() }),
                None => break,
            },
            // Waited for once.
            () = &mut late, if is_found => {
                unanswered.iter().for_each(Pool::has_kept_silent);
                break;
            }
        }
    }
    answers.end(unanswered.is_empty())
}

impl<T> Answers<T> {
    /// # Errors
    /// UNSUPPORTED when another pool has it too.
    fn take(&mut self, place: usize, pool: Arc<Pool>, answer: Result<T, Refusal>) -> Result<(), Refusal> {
        match (answer, &self.found) {
            (Ok(_), Some((other, _))) => return Err(in_two_pools(self.share, &pool.name, &other.name)),
            (Ok(answer), None) => self.found = Some((pool, answer)),
            (Err(Refusal::ShareNotFound { .. }), _) => {}
            (Err(refusal), _) => self.cannot_tell(place, refusal),
        }
        Ok(())
    }

    /// What a pool says of the share counts more than that it can say nothing.
    fn cannot_tell(&mut self, place: usize, refusal: Refusal) {
        let says_nothing =
            matches!(refusal, Refusal::NotMounted { .. } | Refusal::Stuck { .. } | Refusal::QueueFull { .. });
        let weight = (says_nothing, place);
        if self.undecided.as_ref().is_none_or(|(least, _)| weight < *least) {
            self.undecided = Some((weight, refusal));
        }
    }

    fn end(self, all_answered: bool) -> Result<Found<T>, Refusal> {
        let in_no_other = all_answered && self.undecided.is_none();
        match self.found {
            Some((pool, answer)) => Ok(Found { pool, answer, in_no_other }),
            None => Err(self.undecided.map_or(Refusal::ShareNotFound { share: self.share }, |(_, refusal)| refusal)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::pools::fixture::pool;
    use uuid::Uuid;

    const SHARE: ShareId = ShareId::from_uuid(Uuid::from_u128(7));

    fn not_mounted(pool: &str) -> Refusal {
        Refusal::NotMounted { pool: pool.parse().unwrap(), problem: String::new() }
    }

    fn unmounted() -> Refusal {
        not_mounted("b")
    }

    fn broken() -> Refusal {
        Refusal::Internal { problem: String::new() }
    }

    fn not_there() -> Refusal {
        Refusal::ShareNotFound { share: SHARE }
    }

    /// The pool that has the share and whether it is in no other, or the refusal.
    fn end(said: &[Result<(), Refusal>], all_answered: bool) -> Result<(String, bool), Refusal> {
        let mut answers = Answers { share: SHARE, found: None, undecided: None };
        for (place, answer) in said.iter().cloned().enumerate() {
            answers.take(place, pool(["a", "b", "c"][place], &[]), answer)?;
        }
        answers.end(all_answered).map(|found| (found.pool.name.to_string(), found.in_no_other))
    }

    #[test]
    fn a_share_is_in_no_other_pool_when_all_others_say_so() {
        let found = |in_no_other| Ok(("a".to_owned(), in_no_other));
        assert_eq!(end(&[Ok(()), Err(not_there())], true), found(true));
        assert_eq!(end(&[Ok(())], false), found(false), "one has not answered");
        assert_eq!(end(&[Ok(()), Err(unmounted())], true), found(false));
        assert_eq!(end(&[Ok(()), Err(broken())], true), found(false));
        assert_eq!(end(&[Ok(()), Err(broken()), Ok(())], true), {
            Err(in_two_pools(SHARE, &pool("a", &[]).name, &pool("c", &[]).name))
        });
    }

    #[test]
    fn what_a_pool_says_of_a_share_counts_more_than_that_it_can_say_nothing() {
        assert_eq!(end(&[Err(not_there()), Err(not_there())], true), Err(not_there()));
        assert_eq!(end(&[Err(not_there()), Err(unmounted())], true), Err(unmounted()));
        for said in [[unmounted(), broken()], [broken(), unmounted()]] {
            assert_eq!(end(&said.map(Err), true), Err(broken()));
        }
    }
    #[test]
    fn of_two_pools_that_can_say_nothing_the_first_of_the_configuration_is_told() {
        for order in [[0, 1], [1, 0]] {
            let mut answers: Answers<()> = Answers { share: SHARE, found: None, undecided: None };
            for place in order {
                let name = ["a", "b"][place];
                answers.take(place, pool(name, &[]), Err(not_mounted(name))).unwrap();
            }
            assert_eq!(answers.end(true).map(|_| ()), Err(not_mounted("a")));
        }
    }
}
