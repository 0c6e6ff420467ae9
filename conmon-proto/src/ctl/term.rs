//! The caller's terminal: raw while it belongs to a container or a table, and as it was afterwards, whatever happens.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;

use nix::sys::termios::{self, SetArg, Termios};

use crate::sys;

/// How the terminal was before we changed it. Global, because a panic must find it.
static BEFORE: Mutex<Option<Before>> = Mutex::new(None);

struct Before {
    modes: Termios,
    /// The alternate screen is shown.
    screen: bool,
}

/// Raw mode of standard input; ends when it is dropped.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// Every key comes at once and as it is, also those that would be signals.
    pub fn enter() -> io::Result<Raw> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut modes = before.clone();
        termios::cfmakeraw(&mut modes);
        remember(Before { modes: before, screen: false });
        termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &modes)?;
        Ok(Raw(()))
    }

    /// Raw mode, and a screen beside the one that was there.
    pub fn screen() -> io::Result<Raw> {
        let raw = Raw::enter()?;
        if let Ok(mut before) = BEFORE.lock()
            && let Some(before) = before.as_mut()
        {
            before.screen = true;
        }
        io::stdout().write_all(b"\x1b[?1049h\x1b[?25l")?;
        io::stdout().flush()?;
        Ok(raw)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn remember(before: Before) {
    if let Ok(mut place) = BEFORE.lock() {
        *place = Some(before);
    }
}

fn restore() {
    let Some(before) = BEFORE.lock().ok().and_then(|mut before| before.take()) else { return };
    // If the terminal has gone there is nothing to restore.
    if before.screen {
        let _ = io::stdout().write_all(b"\x1b[?25h\x1b[?1049l").and_then(|()| io::stdout().flush());
    }
    let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &before.modes);
}

/// A panic ends the process without dropping anything.
pub fn restore_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        tell(panic);
    }));
}

/// Rows and columns of the terminal that we are on, if we are on one.
pub fn size() -> Option<(u16, u16)> {
    sys::window_size(io::stdout()).or_else(|| sys::window_size(io::stdin())).filter(|&size| size != (0, 0))
}

pub fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

pub fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether to write colours: to a terminal, unless told not to (no-color.org).
pub fn colours() -> bool {
    stdout_is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
