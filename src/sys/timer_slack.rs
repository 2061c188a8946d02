//! How late the kernel may end timed waits of a thread: PR_SET_TIMERSLACK of prctl(2).

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl;

/// While this lives, threads that the current one starts are threads whose timed waits may end this much later, and do so
/// for good. Wake-ups that are meant for them are as prompt as ever.
pub struct Lenient {
    before: u64,
}

impl Lenient {
    /// # Errors
    /// Those of prctl(2).
    pub fn by(slack: Duration) -> Result<Self, Errno> {
        let before = prctl::get_timerslack()?;
        prctl::set_timerslack(u64::try_from(slack.as_nanos()).unwrap_or(u64::MAX))?;
        Ok(Self { before: u64::try_from(before).unwrap_or_default() })
    }
}

impl Drop for Lenient {
    fn drop(&mut self) {
        // The number is one that the kernel has given.
        let _ = prctl::set_timerslack(self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_inherit_it_and_this_one_gets_its_own_back() {
        let before = prctl::get_timerslack().unwrap();
        let lenient = Lenient::by(Duration::from_millis(7)).unwrap();
        let inherited = std::thread::spawn(|| prctl::get_timerslack().unwrap()).join().unwrap();
        assert_eq!(inherited, 7_000_000);
        drop(lenient);
        assert_eq!(prctl::get_timerslack().unwrap(), before);
    }
}
