//! A download that may have begun before.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;

use super::failure::{Failure, Step};
use crate::error::{Context, Result};
use crate::image::files;

/// What is read and written at a time, in bytes.
pub const CHUNK: usize = 256 << 10;

/// The part of a layer that is on disk, and its hash so far.
pub struct Part {
    path: PathBuf,
    state: Option<(File, Sha256)>,
    pub length: u64,
}

impl Part {
    pub async fn open(path: &Path) -> Step<Part> {
        let path = path.to_owned();
        spawn_blocking(move || {
            let doing = || format!("Failed to open {}", path.display());
            let mut file =
                File::options().read(true).write(true).create(true).truncate(false).open(&path).context(doing)?;
            let mut hash = Sha256::new();
            let mut buffer = vec![0; CHUNK];
            let mut length = 0;
            loop {
                let count = file.read(&mut buffer).context(doing)?;
                if count == 0 {
                    break;
                }
                hash.update(&buffer[..count]);
                length += count as u64;
            }
            if length > 0 {
                tracing::info!(part = %path.display(), bytes = length, "going on with a download");
            }
            Ok(Part { state: Some((file, hash)), path, length })
        })
        .await
        .map_err(|error| Failure::fatal(error.to_string()))?
    }

    pub async fn append(&mut self, mut data: Vec<u8>) -> Step<Vec<u8>> {
        let (mut file, mut hash) = self.state.take().ok_or_else(|| Failure::fatal("download was given up"))?;
        let done = spawn_blocking(move || {
            hash.update(&data);
            let written = file.write_all(&data);
            let count = data.len() as u64;
            data.clear();
            (file, hash, written, count, data)
        });
        let (file, hash, written, count, data) = done.await.map_err(|error| Failure::fatal(error.to_string()))?;
        written.context(|| format!("Failed to write {}", self.path.display()))?;
        self.state = Some((file, hash));
        self.length += count;
        Ok(data)
    }

    pub fn restart(&mut self) -> Result<()> {
        if let Some((file, hash)) = &mut self.state {
            let emptied = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
            emptied.context(|| format!("Failed to empty {}", self.path.display()))?;
            *hash = Sha256::new();
        }
        self.length = 0;
        Ok(())
    }

    pub fn digest(&self) -> String {
        self.state.as_ref().map(|(_, hash)| files::finish(hash.clone())).unwrap_or_default()
    }
}
