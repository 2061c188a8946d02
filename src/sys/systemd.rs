//! The service manager: what it is told, and the socket that it holds for growd. See sd_notify(3), sd_watchdog_enabled(3)
//! and sd_listen_fds(3). Where there is none, nobody is told and there is no socket.

use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use sd_notify::NotifyState;

/// Whether anybody listens to what growd says of itself.
pub fn listens() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// growd has started: units that wait for it go on.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// What `systemctl status growd` shows.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// growd lives; said at least every [`watchdog`].
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// The configuration is being read anew; [`ready`] follows when that has ended.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// growd is on its way out.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// After how long without [`alive`] growd is taken for dead; `None` when nobody watches.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

fn tell(state: &[NotifyState<'_>]) {
    // A manager that does not hear it will act as it sees fit; growd can do nothing about that.
    let _ = sd_notify::notify(state);
}

/// The socket that the manager has bound and listens on before growd starts, so that nobody is refused while growd is
/// not there. To be called once.
///
/// # Errors
/// When the manager has passed more than one socket, or what it says makes no sense.
pub fn held_socket() -> io::Result<Option<UnixListener>> {
    let mut passed = sd_notify::listen_fds()?;
    let Some(fd) = passed.next() else { return Ok(None) };
    if passed.next().is_some() {
        let problem = "there is more than one, and growd serves one; an empty ListenStream= drops those before it";
        return Err(io::Error::other(problem));
    }
    // SAFETY: the manager has opened this descriptor for this very process (LISTEN_PID), and nobody else owns it, since
    // this function is called once. What kind of socket it is, its address tells.
    Ok(Some(unsafe { UnixListener::from_raw_fd(fd) }))
}
