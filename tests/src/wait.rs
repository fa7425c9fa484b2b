//! Waiting for conditions, never for a time.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything may take that takes a moment on an idle machine. Generous: a loaded machine is no failure.
pub const SOON: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(20);

/// What `look` finds, as soon as it finds something; an error that says `what` after `patience`.
pub fn wait_for<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > patience {
            bail!("waited {patience:?} in vain for {what}");
        }
        thread::sleep(STEP);
    }
}

/// Returns as soon as `is_true`.
pub fn wait_until(what: &str, patience: Duration, mut is_true: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_for(what, patience, || Ok(is_true()?.then_some(())))
}
