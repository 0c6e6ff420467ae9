//! podman in a real terminal: a pty whose other side is podman's controlling terminal, as in a terminal window.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    process::{Child, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use conward::sys::set_window_size;
use nix::{
    fcntl::OFlag,
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
};

use super::{
    Stop, Verdict,
    bed::{Bed, PATIENCE},
    call::{Call, PAUSE, Reader},
    check,
    processes::eventually,
    rig::failed,
};

/// Dropped, podman is killed.
pub struct Tty<'a> {
    bed: &'a Bed<'a>,
    keyboard: File,
    screen: Reader,
    podman: Child,
    line: String,
    /// How much of the screen `wait_for` has seen.
    seen: usize,
}

impl<'a> Tty<'a> {
    /// 24 lines by 80 columns.
    pub fn open(bed: &'a Bed<'a>, args: &[&str]) -> Verdict<Self> {
        Self::of(bed, bed.podman(args))
    }

    /// The same with another program.
    pub fn of(bed: &'a Bed<'a>, call: Call) -> Verdict<Self> {
        let (keyboard, name) = pty().map_err(|e| Stop::Failed(format!("cannot make a pty: {e}")))?;
        let mine = keyboard.try_clone().map_err(|e| failed(&name, &e))?;
        set_window_size(keyboard.as_fd(), 24, 80).map_err(|e| failed(&name, &e))?;
        // setsid makes the terminal on stdin the controlling one: podman then gets SIGWINCH.
        let (mut command, line) = call.under(&bed.rig.busybox, &["setsid", "-c"]).command();
        for set in [std::process::Command::stdin, std::process::Command::stdout, std::process::Command::stderr] {
            set(&mut command, other_side(&name)?);
        }
        let podman = command.spawn().map_err(|e| failed(&line, &e))?;
        // `command` ends here and with it our copies of the other side, so that the end of podman is an end of the screen.
        drop(command);
        Ok(Self { bed, keyboard, screen: Reader::start(Some(mine.into())), podman, line, seen: 0 })
    }

    pub fn keys(&mut self, keys: &str) -> Verdict {
        self.keyboard.write_all(keys.as_bytes()).map_err(|e| failed("typing", &e))
    }

    /// One key after the other, as a person does: podman looks for detach keys in reads of one byte only.
    pub fn press(&mut self, keys: &str) -> Verdict {
        for key in keys.chars() {
            thread::sleep(BETWEEN_KEYS);
            self.keys(key.encode_utf8(&mut [0; 4]))?;
        }
        Ok(())
    }

    /// Waits for text that was not seen by an earlier call; gives the text up to its end.
    pub fn wait_for(&mut self, text: &str) -> Verdict<String> {
        let until = Instant::now() + self.bed.left(PATIENCE);
        loop {
            let all = self.screen.bytes();
            let new = &all[self.seen..];
            if let Some(at) = new.windows(text.len()).position(|part| part == text.as_bytes()) {
                let end = at + text.len();
                self.seen += end;
                return Ok(String::from_utf8_lossy(&new[..end]).into_owned());
            }
            let shown = || String::from_utf8_lossy(&new[new.len().saturating_sub(1000)..]).into_owned();
            check!(!self.screen.ended(), "`{}` closed its terminal without {text:?}; screen {:?}", self.line, shown());
            check!(Instant::now() < until, "`{}` did not show {text:?}; new on the screen {:?}", self.line, shown());
            thread::sleep(PAUSE);
        }
    }

    /// Whether the text is seen within a moment.
    pub fn soon(&self, text: &str) -> bool {
        eventually(MOMENT, || self.screen().contains(text))
    }

    /// Everything so far.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.bytes()).into_owned()
    }

    /// The pid of the program, which took the place of the one that gave it its terminal.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.podman.id()).unwrap_or(0)
    }

    /// As a terminal window does it: podman gets SIGWINCH.
    pub fn resize(&self, rows: u16, columns: u16) -> Verdict {
        set_window_size(self.keyboard.as_fd(), rows, columns).map_err(|e| failed("resizing", &e))
    }

    /// Waits for podman's end, with this exit code; gives all that was on the screen.
    pub fn end(self, code: i32) -> Verdict<String> {
        let (line, (ended, screen)) = (self.line.clone(), self.gone()?);
        check!(ended.code() == Some(code), "`{line}`: {ended}, expected exit code {code}; screen {screen:?}");
        Ok(screen)
    }

    /// Waits for podman's end.
    pub fn gone(mut self) -> Verdict<(ExitStatus, String)> {
        let until = Instant::now() + self.bed.left(PATIENCE);
        loop {
            if let Some(status) = self.podman.try_wait().map_err(|e| failed("waiting for podman", &e))?
                && self.screen.ended()
            {
                return Ok((status, self.screen()));
            }
            check!(
                Instant::now() < until,
                "`{}` did not end and leave its terminal; screen {:?}",
                self.line,
                self.screen()
            );
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Tty<'_> {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.podman.kill();
        let _ = self.podman.wait();
    }
}

fn pty() -> nix::Result<(File, String)> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname_r(&master)?;
    Ok((File::from(OwnedFd::from(master)), name))
}

fn other_side(name: &str) -> Verdict<Stdio> {
    let side = OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(name);
    side.map(Stdio::from).map_err(|e| failed(name, &e))
}

/// Fast typing, but slow enough for a loaded machine to see two keys.
const BETWEEN_KEYS: Duration = Duration::from_millis(150);
/// For a question that will be asked again.
const MOMENT: Duration = Duration::from_millis(300);
