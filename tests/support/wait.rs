//! Waiting with a deadline: every wait ends, and says what it waited for.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Fail, Outcome};

/// How long a thing may take that should take milliseconds; generous, for machines that are busy.
pub const SOON: Duration = Duration::from_secs(10);

/// Asks `probe` until it has an answer.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Outcome<Option<T>>) -> Outcome<T> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(answer) = probe()? {
            return Ok(answer);
        }
        if Instant::now() > end {
            return Err(Fail::Wrong(format!("waited {} s in vain for {what}", limit.as_secs_f32())));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Asks until `probe` says yes.
pub fn until_true(what: &str, mut probe: impl FnMut() -> bool) -> Outcome {
    until(what, SOON, || Ok(probe().then_some(())))
}

/// Waits for a file to exist and gives its bytes.
pub fn for_file(path: &Path) -> Outcome<Vec<u8>> {
    until(&format!("the file {}", path.display()), SOON, || Ok(std::fs::read(path).ok()))
}

/// Sees that something does not happen: the only wait that always takes its full time.
pub fn never(what: &str, span: Duration, mut probe: impl FnMut() -> bool) -> Outcome {
    let end = Instant::now() + span;
    while Instant::now() < end {
        if probe() {
            return Err(Fail::Wrong(format!("must not happen: {what}")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
