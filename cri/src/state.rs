//! Plain files as the only memory: written under a temporary name, synced and renamed, so that whoever reads after a
//! crash sees the old or the new and never a part.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Context, Error, Result};
use crate::idmap::UserMaps;

/// Writes a JSON document as a whole: what is there after a power failure is this, or what was there before.
pub fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let doing = || format!("Failed to write {}", path.display());
    let bytes = serde_json::to_vec(value).context(doing)?;
    write_bytes(path, &bytes)
}

/// As [`write`], of bytes. A new file is on the disk when this returns; a new version of one soon after.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let known = path.exists();
    place_bytes(path, bytes)?;
    if known { Ok(()) } else { keep_name(path) }
}

/// As [`write`], but a new file's name is on the disk only after [`keep_name`]. Whoever comes after a kill sees it at
/// once.
pub fn place(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(value).context(|| format!("Failed to write {}", path.display()))?;
    place_bytes(path, &bytes)
}

fn place_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let doing = || format!("Failed to write {}", path.display());
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    // Environments of containers have secrets.
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary).context(doing)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).context(doing)?;
    fs::rename(&temporary, path).context(doing)
}

/// Makes the name of a new file last.
pub fn keep_name(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    File::open(parent).and_then(|dir| dir.sync_all()).context(|| format!("Failed to sync {}", parent.display()))
}

/// Reads what [`write`] wrote.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let doing = || format!("Failed to read {}", path.display());
    let bytes = fs::read(path).context(doing)?;
    serde_json::from_slice(&bytes).context(doing)
}

/// Makes a directory that no other user of this machine looks into: there are secrets in it, and programs of images, which
/// may run as root whoever starts them. The root of a pod's user namespace has to find its way through.
pub fn own_dir(path: &Path, users: Option<UserMaps>) -> Result<()> {
    let doing = || format!("Failed to make {}", path.display());
    fs::create_dir_all(path).context(doing)?;
    let mode = match users {
        None => 0o700,
        Some(maps) => {
            chown(path, None, Some(maps.gids.host)).context(doing)?;
            0o710
        }
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).context(doing)
}

/// Removes a directory with all that is in it; one that is not there is fine.
pub fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::failed(format!("Failed to remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Names of what is in a directory; one that is not there is empty.
pub fn entries(dir: &Path) -> Result<Vec<String>> {
    let doing = || format!("Failed to list {}", dir.display());
    match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries
            .context(doing)?
            .map(|entry| Ok(entry.context(doing)?.file_name().to_string_lossy().into_owned()))
            .collect(),
    }
}

/// 64 random hexadecimal digits.
pub fn new_id() -> Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).context(|| "Failed to get random bytes")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

static LAST: AtomicI64 = AtomicI64::new(0);

/// Nanoseconds since 1970, later than anything it returned before, whatever the clock does: the kubelet takes the
/// greatest `created_at` for the newest.
pub fn now() -> i64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let clock = i64::try_from(clock).unwrap_or(i64::MAX);
    let before = LAST.fetch_max(clock, Ordering::Relaxed);
    if clock > before { clock } else { LAST.fetch_add(1, Ordering::Relaxed) + 1 }
}

/// Makes [`now`] later than a time that is on record, also if the clock was set back since.
pub fn not_before(time: i64) {
    LAST.fetch_max(time, Ordering::Relaxed);
}

/// A value that is in a file as well.
#[derive(Debug)]
pub struct Kept<T> {
    value: RwLock<T>,
    file: PathBuf,
    /// Held by who changes it: whoever only reads does not wait for the disk.
    writing: Mutex<()>,
}

impl<T: Clone + Default + Serialize + DeserializeOwned> Kept<T> {
    /// A value that is written down when it first changes.
    pub fn new(file: PathBuf, value: T) -> Kept<T> {
        Kept { value: RwLock::new(value), file, writing: Mutex::default() }
    }

    /// What the file says, if there is one.
    pub fn load(file: PathBuf) -> Result<Kept<T>> {
        let value = if file.exists() { read(&file)? } else { T::default() };
        Ok(Kept::new(file, value))
    }

    pub fn get(&self) -> T {
        self.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes it; whoever comes after a kill finds it.
    pub fn change(&self, change: impl FnOnce(&mut T)) -> Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.changed(change);
        write(&self.file, &next)?;
        self.set(next);
        Ok(())
    }

    /// Takes note of what is so, also when it cannot be written down: a full disk must not be in the way of removals.
    pub fn learn(&self, change: impl FnOnce(&mut T)) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.changed(change);
        self.set(next.clone());
        if let Err(error) = write(&self.file, &next) {
            tracing::error!("{error}");
        }
    }

    /// Changes it until the next change is written down, with this.
    pub fn suppose(&self, change: impl FnOnce(&mut T)) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.set(self.changed(change));
    }

    fn changed(&self, change: impl FnOnce(&mut T)) -> T {
        let mut next = self.get();
        change(&mut next);
        next
    }

    fn set(&self, next: T) {
        *self.value.write().unwrap_or_else(PoisonError::into_inner) = next;
    }
}

/// Things by id.
#[derive(Debug)]
pub struct Table<T>(RwLock<BTreeMap<String, Arc<T>>>);

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table(RwLock::default())
    }
}

impl<T> Table<T> {
    pub fn insert(&self, id: &str, value: Arc<T>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), value);
    }

    pub fn remove(&self, id: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// By id, or by the beginning of only one.
    pub fn find(&self, id: &str) -> Option<Arc<T>> {
        if id.is_empty() {
            return None;
        }
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = table.get(id) {
            return Some(Arc::clone(value));
        }
        let mut matches = table.range(id.to_owned()..).take_while(|(key, _)| key.starts_with(id));
        match (matches.next(), matches.next()) {
            (Some((_, value)), None) => Some(Arc::clone(value)),
            _ => None,
        }
    }

    pub fn all(&self) -> Vec<Arc<T>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_never_stands_still() {
        let far = now() + 3_600_000_000_000;
        not_before(far);
        let times: Vec<i64> = (0..1000).map(|_| now()).collect();
        assert!(times[0] > far && times.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn beginnings_of_one_id_are_enough() {
        let table = Table::default();
        for id in ["abc1", "abc2", "b"] {
            table.insert(id, Arc::new(id));
        }
        assert_eq!(table.find("abc1").as_deref(), Some(&"abc1"));
        assert_eq!((table.find("abc"), table.find("")), (None, None));
        assert_eq!(table.find("b").as_deref(), Some(&"b"));
    }

    #[test]
    fn a_kept_value_is_what_its_file_says() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.json");
        let kept = Kept::<i32>::load(file.clone()).unwrap();
        kept.change(|value| *value += 7).unwrap();
        assert_eq!((kept.get(), Kept::<i32>::load(file).unwrap().get()), (7, 7));
        // Nowhere to write: what cannot be kept is refused, and what is so is known all the same.
        let nowhere = Kept::new(dir.path().join("none/x.json"), 1);
        assert!(nowhere.change(|value| *value = 2).is_err());
        assert_eq!(nowhere.get(), 1);
        nowhere.learn(|value| *value = 3);
        assert_eq!(nowhere.get(), 3);
    }

    #[test]
    fn a_document_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write(&path, &vec![1, 2, 3]).unwrap();
        write(&path, &vec![4]).unwrap();
        assert_eq!(read::<Vec<i32>>(&path).unwrap(), [4]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
