//! Rotation and reopening, and finding again what was rotated away.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::sys::uio::pread;

use super::LogFile;
use super::entry::{Entry, Found, identity};
use super::past::{Generation, HEAD, NOBODY, Span};

/// A rotation that failed is tried again after this time, when there is something to write.
pub(super) const RETRY: Duration = Duration::from_secs(1);

impl LogFile {
    /// Makes room because [`LogFile::is_full`]; on failure the old file is kept and grows.
    pub fn make_room(&mut self) {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let done = if self.policy.rotate { self.rotate() } else { self.replace() };
        self.settle(&done, "rotate");
    }

    /// Obeys a request to reopen or rotate. A watcher of the path sees it created or moved to, whatever was there.
    pub fn reopen(&mut self) -> io::Result<()> {
        let done = if self.policy.rotate { self.rotate() } else { self.reopen_path() };
        self.settle(&done, "reopen");
        done
    }

    fn settle(&mut self, done: &io::Result<()>, what: &str) {
        self.retry_at = None;
        if let Err(error) = done {
            self.retry_at = Some(Instant::now() + RETRY);
            crate::warn!("Failed to {what} log {}: {error}; the old file is kept", self.path.display());
        }
    }

    /// An empty file in place of the current one, whose content is given up.
    fn replace(&mut self) -> io::Result<()> {
        let entry = Entry::of(&self.path)?;
        if !matches!(entry.look(&self.file)?, Found::Ours | Found::Nothing) {
            return self.reopen_path();
        }
        let (file, readable) = entry.fresh(".tmp", self.policy.file_mode)?;
        entry.rename(&entry.with(".tmp"), &entry.name)?;
        self.switch(file, readable, 0);
        Ok(())
    }

    /// The current file becomes `.1`, `.1` becomes `.2`, and so on up to the number of backups.
    fn rotate(&mut self) -> io::Result<()> {
        let entry = Entry::of(&self.path)?;
        if !matches!(entry.look(&self.file)?, Found::Ours) {
            return self.reopen_path();
        }
        let (file, readable) = entry.fresh(".new", self.policy.file_mode)?;
        for number in (1..self.policy.max_files).rev() {
            let (from, to) = (entry.with(&format!(".{number}")), entry.with(&format!(".{}", number + 1)));
            match entry.rename(&from, &to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        entry.rename(&entry.name, &entry.with(".1"))?;
        entry.rename(&entry.with(".new"), &entry.name)?;
        self.switch(file, readable, 0);
        Ok(())
    }

    /// Goes on in whatever is at the path now, or in a new file there. Nothing is truncated.
    fn reopen_path(&mut self) -> io::Result<()> {
        let entry = Entry::of(&self.path)?;
        match entry.look(&self.file)? {
            Found::Nothing => {
                let (file, readable) = entry.fresh(".tmp", self.policy.file_mode)?;
                entry.rename(&entry.with(".tmp"), &entry.name)?;
                self.switch(file, readable, 0);
            }
            Found::Ours => entry.stir(self.policy.file_mode)?,
            Found::Other => {
                let (file, readable) = entry.open(OFlag::empty(), 0)?;
                let size = u64::try_from(fstat(&file)?.st_size).unwrap_or(0);
                self.switch(file, readable, size);
                entry.stir(self.policy.file_mode)?;
            }
            Found::Unfit => return Err(io::Error::other("it is no regular file any more")),
        }
        Ok(())
    }

    fn switch(&mut self, file: OwnedFd, readable: bool, size: u64) {
        self.repair();
        self.retire();
        if let Ok(stat) = fstat(&file) {
            self.past.replaced(identity(&stat), size);
        }
        self.file = Rc::new(file);
        self.generation += 1;
        self.span.set(Span { begin: size, offsets: self.offsets, shift: 0 });
        self.size = size;
        self.torn = 0;
        self.readable = readable;
    }

    /// Remembers the current file as one of the past; it stays open only if somebody may need it.
    fn retire(&mut self) {
        let stat = fstat(&*self.file).ok().filter(|_| self.is_sound());
        if stat.is_none() {
            // Unreadable, or not what we wrote: nobody will get anything from it.
            self.start_over(0);
        }
        let span = self.span.get();
        let mut head = [0; HEAD];
        let at = physical(span.begin, span.shift);
        let readable = self.readable && at.is_some_and(|at| pread(&*self.file, &mut head, at) == Ok(HEAD));
        self.past.push(Generation {
            number: self.generation,
            id: stat.map_or(NOBODY, |stat| identity(&stat)),
            head,
            span,
            end: self.size,
            ended: self.offsets,
            file: RefCell::new((self.hold && readable).then(|| Rc::clone(&self.file))),
        });
        self.bound();
    }

    // ------------------------------------------------------------ reading back

    /// The file of a generation, if what should be in it is there.
    pub fn file_of(&self, generation: u64) -> Option<Rc<OwnedFd>> {
        if generation == self.generation {
            return (self.readable && self.is_sound()).then(|| Rc::clone(&self.file));
        }
        let past = self.past.generation(generation)?;
        let mut held = past.file.borrow_mut();
        let file = match held.take() {
            Some(file) => file,
            None if past.id == NOBODY => return None,
            None => Rc::new(Entry::of(&self.path).ok()?.find(past.id)?),
        };
        if !past.is_in(&file) {
            return None;
        }
        *held = Some(Rc::clone(&file));
        Some(file)
    }

    /// Everything that is needed to read back.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let past = |past: &Generation| past.file.borrow().as_ref().map(|file| file.as_raw_fd());
        std::iter::once(self.file.as_raw_fd()).chain(self.past.generations().filter_map(past))
    }

    /// Lets go of files before `generation`, which nobody needs any more.
    pub fn release_before(&mut self, generation: u64) {
        for past in self.past.generations().filter(|past| past.number < generation) {
            past.file.take();
        }
    }

    /// Keeps what only our descriptors keep on the disk within its bound.
    fn bound(&mut self) {
        let mut unlinked = 0;
        let mut newest_first: Vec<&Generation> = self.past.generations().collect();
        newest_first.reverse();
        for past in newest_first {
            unlinked += past.unlinked();
            if unlinked > self.held_max {
                past.file.take();
            }
        }
    }

    /// True if the current file is as long as we left it. Otherwise somebody else cut or extended it: no place in it is
    /// known any more but its end.
    fn is_sound(&self) -> bool {
        let Ok(stat) = fstat(&*self.file) else { return false };
        let expected = physical(self.size + self.torn, self.span.get().shift);
        if expected == Some(stat.st_size) {
            return true;
        }
        let ours = i64::try_from(self.size + self.torn).unwrap_or(i64::MAX);
        self.start_over(stat.st_size.saturating_sub(ours));
        false
    }

    /// Gives up what is in the current file: what comes next can be read back, at its offset plus `shift`.
    pub(super) fn start_over(&self, shift: i64) {
        self.span.set(Span { begin: self.size, offsets: self.offsets, shift });
    }
}

impl Generation {
    fn is_in(&self, file: &OwnedFd) -> bool {
        let mut head = [0; HEAD];
        let long = physical(self.end, self.span.shift);
        fstat(file).is_ok_and(|stat| long.is_some_and(|end| stat.st_size >= end))
            && physical(self.span.begin, self.span.shift)
                .is_some_and(|at| pread(file, &mut head, at) == Ok(HEAD) && head == self.head)
    }

    /// Bytes that only our descriptor keeps on the disk.
    fn unlinked(&self) -> u64 {
        let held = self.file.borrow();
        let Some(stat) = held.as_ref().and_then(|file| fstat(&**file).ok()) else { return 0 };
        if stat.st_nlink == 0 { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 }
    }
}

/// Where a byte of ours really is in its file.
pub fn physical(offset: u64, shift: i64) -> Option<i64> {
    i64::try_from(offset).ok()?.checked_add(shift).filter(|at| *at >= 0)
}
