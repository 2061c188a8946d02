//! Questions to a disk, a pool's or that of the job store, on threads that they may block.
//!
//! To wake a thread and to be woken by it takes longer than most questions. So one thread takes all that wait, one after
//! the other. When one keeps it too long another thread takes its place: those behind a disk that hangs are held up
//! once, for a moment.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Longer than a question to lvm may take. Whoever waited so long is told; the thread stays behind until it is answered.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// Threads for one disk, which is how many questions to it may hang before none is answered any more.
pub const THREADS: usize = 32;
/// Questions that may wait for a thread when all hang. Most of those who asked have gone by then, and nothing takes their
/// questions away before the disk answers.
const MOST_WAITING: usize = 1024;
/// A thread that has taken no question for so long while some wait is held up. This is also how often somebody looks, so it is
/// noticed after one to two of these.
const HELD_UP: Duration = Duration::from_millis(5);

type Question = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub struct Looks {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Question>,
    /// Counts the threads that have taken questions: the last of them does, as long as `is_taken` says that it is there.
    taker: u64,
    is_taken: bool,
    /// Threads at work, with those that are held up by a question.
    threads: usize,
    /// Questions that were ever taken.
    taken: u64,
    /// Whether somebody looks after the thread that takes them.
    is_watched: bool,
}

/// Why a question has no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// For as long as [`PATIENCE`], or as long as many others, which nobody waits behind.
    Hangs,
    /// With the message of its panic.
    Crashed(String),
}

impl Looks {
    /// Waits for what was asked here.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn wait_for<T>(&self, answer: impl Future<Output = Result<T, String>>) -> Result<T, Unanswered> {
        if self.are_overrun() {
            return Err(Unanswered::Hangs);
        }
        timeout(PATIENCE, answer).await.map_err(|_| Unanswered::Hangs)?.map_err(Unanswered::Crashed)
    }

    /// What `question` answers.
    ///
    /// # Errors
    /// The message of its panic.
    pub async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        question: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        let (answer, answered) = oneshot::channel();
        self.add(Box::new(move || {
            // Whoever gave up needs no answer.
            if !answer.is_closed() {
                let _ = answer.send(catch(question));
            }
        }));
        match answered.await {
            Ok(answer) => answer,
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether all threads hang and so many questions wait that another had better not be asked.
    fn are_overrun(&self) -> bool {
        let state = self.state.lock();
        state.threads >= THREADS && state.waiting.len() >= MOST_WAITING
    }

    fn add(self: &Arc<Self>, question: Question) {
        let mut state = self.state.lock();
        state.waiting.push_back(question);
        if !state.is_taken {
            self.start(&mut state);
        } else if !state.is_watched {
            state.is_watched = true;
            tokio::spawn(Arc::clone(self).watch(state.taken));
        }
    }

    fn start(self: &Arc<Self>, state: &mut State) {
        state.taker += 1;
        state.is_taken = true;
        state.threads += 1;
        let (looks, taker) = (Arc::clone(self), state.taker);
        spawn_blocking(move || {
            while let Some(question) = looks.next(taker) {
                question()
            }
        });
    }

    /// The next question for a thread; `None` when there is none for it, and it ends.
    fn next(&self, taker: u64) -> Option<Question> {
        let mut state = self.state.lock();
        if state.taker == taker {
            if let Some(question) = state.waiting.pop_front() {
                state.taken += 1;
                return Some(question);
            }
            state.is_taken = false;
        }
        state.threads -= 1;
        None
    }

    /// Puts another thread in the place of one that is held up, until no question waits.
    async fn watch(self: Arc<Self>, mut taken: u64) {
        loop {
            tokio::time::sleep(HELD_UP).await;
            let mut state = self.state.lock();
            if state.waiting.is_empty() {
                state.is_watched = false;
                return;
            }
            if state.taken == taken && state.threads < THREADS {
                self.start(&mut state);
            }
            taken = state.taken;
        }
    }
}

/// Questions of one kind. Those that wait are answered together, as far as that is wanted: what is the same for all has to
/// be asked of the kernel once then.
pub struct Together<Q, A> {
    waiting: Mutex<VecDeque<(Q, Asker<A>)>>,
    most: usize,
    answer: Box<Answer<Q, A>>,
}

type Asker<A> = oneshot::Sender<Result<A, String>>;
type Answer<Q, A> = dyn Fn(&[Q]) -> Vec<A> + Send + Sync;

impl<Q: Send + 'static, A: Send + 'static> Together<Q, A> {
    /// `answer` is given `most` questions at a time, and gives their answers in the same order.
    pub fn new(most: usize, answer: impl Fn(&[Q]) -> Vec<A> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { waiting: Mutex::default(), most, answer: Box::new(answer) })
    }

    /// What is answered to one of them, on a thread of `looks`.
    ///
    /// # Errors
    /// The message of a panic.
    pub async fn ask(self: &Arc<Self>, looks: &Arc<Looks>, question: Q) -> Result<A, String> {
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().push_back((question, answer));
        // One for each, so that at its turn at the latest it is among the first that wait.
        let together = Arc::clone(self);
        looks.add(Box::new(move || together.answer_first()));
        answered.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn answer_first(&self) {
        let first: Vec<_> = {
            let mut waiting = self.waiting.lock();
            let count = waiting.len().min(self.most);
            waiting.drain(..count).collect()
        };
        let (questions, askers): (Vec<Q>, Vec<Asker<A>>) =
            first.into_iter().filter(|(_, asker)| !asker.is_closed()).unzip();
        if questions.is_empty() {
            return;
        }
        // Whoever gave up meanwhile needs no answer.
        match catch(|| (self.answer)(&questions)) {
            Ok(answers) => askers.into_iter().zip(answers).for_each(|(asker, answer)| drop(asker.send(Ok(answer)))),
            Err(what) => askers.into_iter().for_each(|asker| drop(asker.send(Err(what.clone())))),
        }
    }
}

/// What a call gives.
///
/// # Errors
/// The message of its panic.
pub fn catch<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        format!("panicked: {}", text.unwrap_or("for no reason given"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(10);

    /// Asks so many questions that do not return before the sender is dropped.
    fn ask_hanging(looks: &Arc<Looks>, count: usize) -> (mpsc::SyncSender<()>, impl Future<Output = usize>) {
        let (hold, held) = mpsc::sync_channel::<()>(0);
        let held = Arc::new(Mutex::new(held));
        let hanging = (0..count).map(|_| {
            let (looks, held) = (Arc::clone(looks), Arc::clone(&held));
            tokio::spawn(async move { looks.ask(move || held.lock().recv().is_err()).await })
        });
        let hanging: Vec<_> = hanging.collect();
        let answers =
            async { join_all(hanging).await.into_iter().filter(|answer| matches!(answer, Ok(Ok(true)))).count() };
        (hold, answers)
    }

    /// Waits until so many were taken.
    async fn taken(looks: &Looks, count: u64) {
        let taken = async {
            while looks.state.lock().taken < count {
                tokio::time::sleep(HELD_UP).await;
            }
        };
        timeout(SOON, taken).await.expect("each gets a thread");
    }

    #[tokio::test]
    async fn one_thread_takes_all_that_wait() {
        let (looks, at_work) = (Arc::new(Looks::default()), Arc::new(AtomicUsize::new(0)));
        let asked = (0..100).map(|n| {
            let at_work = Arc::clone(&at_work);
            looks.ask(move || {
                assert_eq!(at_work.fetch_add(1, Ordering::SeqCst), 0, "two at the same time");
                at_work.fetch_sub(1, Ordering::SeqCst);
                n
            })
        });
        let answers = join_all(asked).await;
        assert_eq!(answers, (0..100).map(Ok).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn those_behind_one_that_hangs_are_answered() {
        let looks = Arc::new(Looks::default());
        let (hold, hanging) = ask_hanging(&looks, 1);
        for n in 0..3 {
            let asked = join_all((0..10).map(|m| looks.ask(move || n + m)));
            let answers = timeout(SOON, asked).await.expect("answered though one hangs");
            assert_eq!(answers, (n..n + 10).map(Ok).collect::<Vec<_>>());
        }
        drop(hold);
        assert_eq!(timeout(SOON, hanging).await, Ok(1));
    }

    #[tokio::test]
    async fn so_many_may_hang_and_all_are_answered_at_last() {
        let looks = Arc::new(Looks::default());
        let (hold, hanging) = ask_hanging(&looks, THREADS + 3);
        taken(&looks, THREADS as u64).await;
        let late = timeout(HELD_UP * 10, looks.ask(|| ())).await;
        assert!(late.is_err(), "no thread is left");
        assert_eq!(looks.state.lock().threads, THREADS);
        assert!(!looks.are_overrun());
        for _ in 0..MOST_WAITING {
            assert!(timeout(Duration::ZERO, looks.ask(|| ())).await.is_err());
        }
        assert!(looks.are_overrun(), "whoever asks has to wait for ever, and leaves a question behind");
        drop(hold);
        assert_eq!(timeout(SOON, hanging).await, Ok(THREADS + 3));
        assert_eq!(timeout(SOON, looks.ask(|| 7)).await, Ok(Ok(7)));
        assert!(!looks.are_overrun());
    }

    #[tokio::test]
    async fn whoever_gave_up_is_not_asked_for() {
        let (looks, asked) = (Arc::new(Looks::default()), Arc::new(AtomicUsize::new(0)));
        let (hold, hanging) = ask_hanging(&looks, 1);
        taken(&looks, 1).await;
        let counting = || {
            let asked = Arc::clone(&asked);
            looks.ask(move || asked.fetch_add(1, Ordering::SeqCst))
        };
        assert!(timeout(Duration::ZERO, counting()).await.is_err());
        assert_eq!(timeout(SOON, counting()).await, Ok(Ok(0)));
        drop(hold);
        assert_eq!(hanging.await, 1);
    }

    #[tokio::test]
    async fn a_panic_is_told_and_the_next_is_answered() {
        let looks = Arc::new(Looks::default());
        let answer: Result<(), String> = looks.ask(|| panic!("no {}", "disk")).await;
        assert_eq!(answer, Err("panicked: no disk".to_owned()));
        assert_eq!(looks.ask(|| 1).await, Ok(1));
    }

    /// Answers each with itself and how many were asked together.
    fn counted(most: usize) -> Arc<Together<usize, (usize, usize)>> {
        Together::new(most, |asked| asked.iter().map(|question| (*question, asked.len())).collect())
    }

    #[tokio::test]
    async fn those_that_wait_are_answered_together() {
        for (most, together) in [(1, [1; 5]), (3, [2, 2, 3, 3, 3]), (9, [5; 5])] {
            let (looks, counted) = (Arc::new(Looks::default()), counted(most));
            let (hold, hanging) = ask_hanging(&looks, 1);
            taken(&looks, 1).await;
            // The first gives up, and is not asked for.
            assert!(timeout(Duration::ZERO, counted.ask(&looks, 5)).await.is_err());
            let asked = join_all((0..5).map(|n| counted.ask(&looks, n)));
            let answers = timeout(SOON, asked).await.expect("answered though one hangs");
            let expected: Vec<_> = (0..5).zip(together).map(Ok).collect();
            assert_eq!(answers, expected, "{most}");
            drop(hold);
            hanging.await;
        }
    }

    #[tokio::test]
    async fn a_panic_is_told_to_all_that_were_asked_together() {
        let looks = Arc::new(Looks::default());
        let together = Together::new(9, |asked: &[u8]| -> Vec<()> { panic!("{asked:?}") });
        let answers = join_all((0..3).map(|n| together.ask(&looks, n))).await;
        assert!(answers.iter().all(|answer| answer.as_ref().is_err_and(|what| what.starts_with("panicked: ["))));
        assert_eq!(looks.ask(|| 1).await, Ok(1));
    }
}
