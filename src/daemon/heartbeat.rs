//! What the service manager hears of growd while it runs: that it lives, and what it is doing.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::Engine;
use crate::sys::systemd;

/// How old the status may be.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// Says so again and again, for as long as the runtime and the locks of engine and store do what they are for: each beat
/// is a task of its own, which takes every lock that a request takes.
pub async fn beat(engine: Arc<Engine>) {
    if !systemd::listens() {
        return;
    }
    // Two beats may go missing on a busy machine.
    let period = systemd::watchdog().map_or(STATUS_EVERY, |limit| STATUS_EVERY.min(limit / 3));
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut said = String::new();
    loop {
        ticks.tick().await;
        let asked = Arc::clone(&engine);
        let Ok(status) = tokio::spawn(async move { status(&asked) }).await else { continue };
        systemd::alive();
        if status != said {
            systemd::status(&status);
            said = status;
        }
    }
}

fn status(engine: &Engine) -> String {
    let (queued, running) = engine.pulse();
    let mut status = if engine.claims.is_closed() {
        format!("draining: {running} jobs running, {queued} stay queued for the next start")
    } else {
        let pools: Vec<String> = engine.pools.all().iter().map(|pool| pool.name.to_string()).collect();
        format!("{running} jobs running, {queued} queued, {} kept; pools: {}", engine.store.kept(), pools.join(", "))
    };
    if let Some(failure) = &*engine.store.failure().borrow() {
        // One line, as the protocol has it.
        status = format!("{status}; the job store cannot be written: {}", failure.to_string().replace('\n', " "));
    }
    status
}
