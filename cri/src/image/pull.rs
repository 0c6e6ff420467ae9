//! Pulls from registries: manifest, configuration, and the layers that are not there yet.
//!
//! A layer goes to a file named by its digest, is checked, and is then unpacked. When the connection breaks the next
//! one asks for the rest; so does the next pull, after a kill too. Pulls of the same name by the same user are one.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared, try_join_all};
use futures_util::stream::StreamExt;
use oci_client::client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
    OciDescriptor,
};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex as AsyncMutex, Semaphore};
use tokio::task::spawn_blocking;

use super::auth::{self, Credentials};
use super::load::parse_config;
use super::store::{Record, Store};
use super::unpack::unpack;
use super::{Image, files, name};
use crate::config;
use crate::error::{Context, Error, Result};

/// What is being pulled.
#[derive(Debug)]
pub(super) struct Pulls {
    running: Mutex<HashMap<Key, WeakShared<Pull>>>,
    /// One download of a layer at a time, whatever image it is for.
    layers: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
    slots: Semaphore,
}

/// Who does not have the same credentials must not get at an image by somebody else's.
type Key = (String, Option<Credentials>);
type Pull = BoxFuture<'static, Result<Image>>;

const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Manifests and configurations are small; a registry must not fill our memory.
const DOCUMENT_LIMIT: usize = 8 << 20;
const CHUNK: usize = 256 << 10;

impl Pulls {
    pub fn new(settings: &config::Images) -> Pulls {
        Pulls {
            running: Mutex::default(),
            layers: Mutex::default(),
            slots: Semaphore::new(settings.parallel_layers.max(1)),
        }
    }

    fn layer(&self, digest: &str) -> Arc<AsyncMutex<()>> {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(layers.entry(digest.to_owned()).or_default())
    }
}

impl Store {
    /// Pulls an image by tag or digest, as what the credentials or else the configured file say. A pull that nobody
    /// waits for any more stops; what it has downloaded is used by the next.
    pub async fn pull(&self, reference: &str, credentials: Option<Credentials>) -> Result<Image> {
        let parsed = name::parse(reference)?;
        let key = (name::whole(&parsed), credentials);
        self.join(key, parsed).await
    }

    fn join(&self, key: Key, reference: Reference) -> Shared<Pull> {
        let mut running = self.pulls().running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, pull| pull.upgrade().is_some_and(|pull| pull.peek().is_none()));
        if let Some(pull) = running.get(&key).and_then(WeakShared::upgrade) {
            return pull;
        }
        let (store, credentials) = (self.clone(), key.1.clone());
        let pull = async move { store.fetch(&reference, credentials).await }.boxed().shared();
        if let Some(weak) = pull.downgrade() {
            running.insert(key, weak);
        }
        pull
    }

    async fn fetch(&self, reference: &Reference, credentials: Option<Credentials>) -> Result<Image> {
        let started = Instant::now();
        let name = name::whole(reference);
        tracing::info!(image = name, "pulling");
        let remote = Arc::new(Remote::new(self.settings(), reference, credentials)?);
        let fetched = self.fetch_from(&remote).await.map_err(|error| error.naming(&name))?;
        tracing::info!(image = name, id = fetched.id, took = ?started.elapsed(), "pulled");
        Ok(fetched)
    }

    async fn fetch_from(&self, remote: &Arc<Remote>) -> Step<Image> {
        let reference = &remote.reference;
        let documents = remote.manifest().await?;
        let manifest: Manifest = serde_json::from_slice(&documents.manifest).map_err(bad("manifest"))?;
        let described = manifest.config.ok_or_else(|| Failure::fatal("it has no configuration: not an image"))?;
        if !RUNNABLE.contains(&described.media_type.as_str()) {
            return Err(Failure::fatal(format!("{} is not an image to run", described.media_type)));
        }
        let id = described.digest.clone();
        files::hex(&id)?;
        let of_list = documents.list.iter().map(|list| files::digest(list));
        let hold = self.hold(of_list.chain([id.clone(), files::digest(&documents.manifest)]))?;
        let text = match self.blob(&id) {
            Some(text) => text,
            None => remote.document(&described).await?,
        };
        let config = parse_config(&text)?;
        let layers = config.rootfs().diff_ids().clone();
        if layers.len() != manifest.layers.len() {
            return Err(Failure::fatal("manifest and configuration have not the same number of layers"));
        }
        let hold_layers = self.hold(layers.iter().cloned())?;
        let fetches =
            manifest.layers.iter().zip(&layers).map(|(layer, diff_id)| self.fetch_layer(remote, layer, diff_id));
        try_join_all(fetches).await?;
        let store = self.clone();
        let record = Record {
            tags: reference.digest().is_none().then(|| name::whole(reference)).into_iter().collect(),
            digests: documents.digests(reference),
            layers,
            id,
            ..Record::default()
        };
        spawn_blocking(move || {
            let _holds = (hold, hold_layers);
            let list = documents.list.iter();
            let all = [&text, &documents.manifest].into_iter().chain(list);
            let blobs = all.map(|data| store.put_blob(data)).collect::<Result<_>>()?;
            store.put(Record { blobs, ..record })
        })
        .await
        .map_err(|error| Failure::fatal(error.to_string()))?
        .map_err(Failure::from)
    }

    async fn fetch_layer(&self, remote: &Arc<Remote>, layer: &OciDescriptor, diff_id: &str) -> Step<()> {
        files::hex(diff_id)?;
        let hex = files::hex(&layer.digest)?;
        if self.has_layer(diff_id) {
            return Ok(());
        }
        let lock = self.pulls().layer(&layer.digest);
        let _alone = lock.lock().await;
        // Somebody else's pull may have brought it while we waited.
        if self.has_layer(diff_id) {
            return Ok(());
        }
        let _slot = self.pulls().slots.acquire().await.map_err(|error| Failure::fatal(error.to_string()))?;
        let path = self.dir().join("partial").join(hex);
        remote.download(layer, &path).await?;
        let (store, digest, diff_id) = (self.clone(), layer.digest.clone(), diff_id.to_owned());
        spawn_blocking(move || store.unpack_layer(&path, &digest, &diff_id))
            .await
            .map_err(|error| Failure::fatal(error.to_string()))?
            .map_err(Failure::from)
    }

    fn unpack_layer(&self, path: &Path, digest: &str, diff_id: &str) -> Result<()> {
        let started = Instant::now();
        let file = File::open(path).context(|| format!("Failed to open {}", path.display()))?;
        let draft = self.draft()?;
        let unpacked = unpack(file, &draft.tree()).context(|| format!("Layer {digest}"));
        // Whether it is good or bad, it is of no more use.
        files::remove_file(path)?;
        if unpacked? != diff_id {
            return Err(Error::failed(format!("Layer {digest} does not unpack to {diff_id}")));
        }
        self.keep(draft, diff_id)?;
        tracing::info!(layer = digest, took = ?started.elapsed(), "layer unpacked");
        Ok(())
    }
}

/// One repository of one registry, for the length of a pull.
struct Remote {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
    patience: Duration,
}

type Step<T> = std::result::Result<T, Failure>;

/// Why a step failed, and whether it is worth another attempt.
#[derive(Debug)]
struct Failure {
    text: String,
    kind: FailureKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FailureKind {
    Fatal,
    Missing,
    /// The registry is not there, or is in trouble.
    Unavailable,
}

impl Failure {
    fn fatal(text: impl Into<String>) -> Failure {
        Failure { text: text.into(), kind: FailureKind::Fatal }
    }

    fn unavailable(text: impl Into<String>) -> Failure {
        Failure { text: text.into(), kind: FailureKind::Unavailable }
    }

    fn naming(self, image: &str) -> Error {
        let text = format!("Failed to pull {image}: {}", self.text);
        match self.kind {
            FailureKind::Fatal => Error::Failed(text),
            FailureKind::Missing => Error::missing("image", format!("{image}: {}:", self.text)),
            // What the kubelet shows instead of ErrImagePull. It looks at the beginning of the text, which is that of
            // the status only if the code is Unknown.
            FailureKind::Unavailable => Error::Failed(format!("RegistryUnavailable: {text}")),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::fatal(error.to_string())
    }
}

impl From<OciDistributionError> for Failure {
    fn from(error: OciDistributionError) -> Failure {
        let text = whole_text(&error);
        let kind = match &error {
            OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => FailureKind::Unavailable,
            OciDistributionError::ServerError { code, .. } if *code >= 500 || *code == 429 => FailureKind::Unavailable,
            OciDistributionError::ServerError { code: 404, .. } => FailureKind::Missing,
            OciDistributionError::RegistryError { envelope, .. } => {
                let has = |code: OciErrorCode| envelope.errors.iter().any(|error| error.code == code);
                if has(OciErrorCode::Toomanyrequests) {
                    FailureKind::Unavailable
                } else if has(OciErrorCode::ManifestUnknown) || has(OciErrorCode::NameUnknown) {
                    FailureKind::Missing
                } else {
                    FailureKind::Fatal
                }
            }
            _ => FailureKind::Fatal,
        };
        Failure { text, kind }
    }
}

/// An error with all its causes: the last one says `connection refused`.
fn whole_text(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        cause = error.source();
    }
    text
}

fn bad<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::fatal(format!("Bad {what}: {error}"))
}

/// Configurations of images that can be run.
const RUNNABLE: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

const MANIFESTS: [&str; 4] =
    [OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE];

/// Either kind of manifest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    config: Option<OciDescriptor>,
    #[serde(default)]
    layers: Vec<OciDescriptor>,
    #[serde(default)]
    manifests: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

/// What the manifests of an image are, byte by byte.
struct Documents {
    list: Option<Vec<u8>>,
    manifest: Vec<u8>,
}

impl Documents {
    fn digests(&self, reference: &Reference) -> Vec<String> {
        let repository = name::repository(reference);
        let all = self.list.iter().chain(Some(&self.manifest));
        all.map(|document| format!("{repository}@{}", files::digest(document))).collect()
    }
}

impl Remote {
    fn new(settings: &config::Images, reference: &Reference, credentials: Option<Credentials>) -> Result<Remote> {
        let credentials = match credentials.filter(|credentials| *credentials != Credentials::default()) {
            Some(credentials) => credentials,
            None => auth::from_file(&settings.auth_file, reference)?,
        };
        let registry = reference.resolve_registry();
        let certificates = certificates(&settings.certs_dir.join(registry))?;
        let plain = settings.insecure_registries.iter().any(|host| host == registry)
            || (certificates.is_empty() && is_loopback(registry));
        // One provider for all TLS of the process; somebody may have been faster.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let patience = Duration::from_secs(settings.progress_timeout.max(1));
        let config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            extra_root_certificates: certificates,
            connect_timeout: Some(patience.min(Duration::from_secs(30))),
            read_timeout: Some(patience),
            user_agent: concat!("conward-cri/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(|error| {
            Error::failed(format!("Failed to set up a client for {registry}: {}", whole_text(&error)))
        })?;
        Ok(Remote { client, reference: reference.clone(), auth: credentials.to_auth()?, patience })
    }

    /// The manifest for this machine, by way of lists.
    async fn manifest(&self) -> Step<Documents> {
        self.retry(|| async {
            self.client.auth(&self.reference, &self.auth, RegistryOperation::Pull).await?;
            Ok(())
        })
        .await?;
        let first = self.raw_manifest(&self.reference).await?;
        let mut documents = Documents { list: None, manifest: first };
        for _ in 0..3 {
            let manifest: Manifest = serde_json::from_slice(&documents.manifest).map_err(bad("manifest"))?;
            if manifest.config.is_some() || manifest.manifests.is_empty() {
                return Ok(documents);
            }
            let digest = choose(&manifest.manifests)?;
            let next = self.raw_manifest(&self.reference.clone_with_digest(digest)).await?;
            let list = std::mem::replace(&mut documents.manifest, next);
            documents.list.get_or_insert(list);
        }
        Err(Failure::fatal("lists of manifests within lists"))
    }

    async fn raw_manifest(&self, reference: &Reference) -> Step<Vec<u8>> {
        let (data, _) = self
            .retry(|| async { Ok(self.client.pull_manifest_raw(reference, &self.auth, &MANIFESTS).await?) })
            .await?;
        if data.len() > DOCUMENT_LIMIT {
            return Err(Failure::fatal("manifest too long"));
        }
        match reference.digest() {
            Some(digest) if digest.starts_with("sha256:") && files::digest(&data) != digest => {
                Err(Failure::fatal(format!("manifest does not have digest {digest}")))
            }
            _ => Ok(data.to_vec()),
        }
    }

    /// A small blob, checked.
    async fn document(&self, descriptor: &OciDescriptor) -> Step<Vec<u8>> {
        let data = self
            .retry(|| async {
                let mut stream = self.client.pull_blob_stream(&self.reference, descriptor).await?;
                let mut data = Vec::new();
                while let Some(chunk) = stream.stream.next().await {
                    data.extend_from_slice(&chunk.map_err(OciDistributionError::from)?);
                    if data.len() > DOCUMENT_LIMIT {
                        return Err(Failure::fatal(format!("{} is too long", descriptor.digest)));
                    }
                }
                Ok(data)
            })
            .await?;
        if files::digest(&data) != descriptor.digest {
            return Err(Failure::fatal(format!("configuration does not have digest {}", descriptor.digest)));
        }
        Ok(data)
    }

    /// A step that is repeated while the registry is in trouble.
    async fn retry<T, F: Future<Output = Step<T>>>(&self, step: impl Fn() -> F) -> Step<T> {
        let mut attempt = 0;
        loop {
            match self.timed(step()).await {
                Err(failure) if failure.kind == FailureKind::Unavailable && attempt + 1 < ATTEMPTS => {
                    pause(&mut attempt, &failure, self.reference.registry()).await;
                }
                other => return other,
            }
        }
    }

    async fn timed<T>(&self, step: impl Future<Output = Step<T>>) -> Step<T> {
        match tokio::time::timeout(self.patience, step).await {
            Ok(done) => done,
            Err(_) => Err(Failure::unavailable(format!("no progress for {} s", self.patience.as_secs()))),
        }
    }

    /// A layer into a file that may have a part of it already.
    async fn download(&self, layer: &OciDescriptor, path: &Path) -> Step<()> {
        let size = u64::try_from(layer.size).map_err(bad("size of layer"))?;
        let mut part = Part::open(path).await?;
        let mut attempt = 0;
        while part.length < size {
            let before = part.length;
            let failure = match self.go_on(layer, &mut part, size).await {
                Ok(()) if part.length >= size => break,
                Ok(()) => Failure::unavailable(format!("layer {} ended early", layer.digest)),
                Err(failure) => failure,
            };
            if part.length > before {
                attempt = 0;
            }
            if failure.kind != FailureKind::Unavailable || attempt + 1 >= ATTEMPTS {
                return Err(failure);
            }
            pause(&mut attempt, &failure, &layer.digest).await;
        }
        if part.length == size && part.digest() == layer.digest {
            return Ok(());
        }
        files::remove_file(path)?;
        Err(Failure::fatal(format!("layer {} does not have its digest or size", layer.digest)))
    }

    async fn go_on(&self, layer: &OciDescriptor, part: &mut Part, size: u64) -> Step<()> {
        let asked =
            async { Ok(self.client.pull_blob_stream_partial(&self.reference, layer, part.length, None).await?) };
        let mut stream = match self.timed(asked).await? {
            BlobResponse::Partial(stream) => stream,
            // A registry that does not do parts.
            BlobResponse::Full(stream) => {
                part.restart()?;
                stream
            }
        };
        let mut told = Instant::now();
        let mut buffer = Vec::with_capacity(CHUNK);
        let result = loop {
            let chunk = match tokio::time::timeout(self.patience, stream.stream.next()).await {
                Err(_) => break Err(Failure::unavailable(format!("no progress for {} s", self.patience.as_secs()))),
                Ok(None) => break Ok(()),
                Ok(Some(Err(error))) => break Err(OciDistributionError::from(error).into()),
                Ok(Some(Ok(chunk))) => chunk,
            };
            if part.length + (buffer.len() + chunk.len()) as u64 > size {
                break Err(Failure::fatal(format!("layer {} is longer than announced", layer.digest)));
            }
            buffer.extend_from_slice(&chunk);
            if buffer.len() >= CHUNK {
                buffer = part.append(buffer).await?;
            }
            if told.elapsed() > Duration::from_secs(1) {
                told = Instant::now();
                tracing::info!(layer = layer.digest, bytes = part.length, of = size, "downloading");
            }
        };
        part.append(buffer).await?;
        result
    }
}

async fn pause(attempt: &mut u32, failure: &Failure, what: &str) {
    let pause = FIRST_PAUSE * (1 << *attempt);
    tracing::warn!(what, error = failure.text, ?pause, "trying again");
    tokio::time::sleep(pause).await;
    *attempt += 1;
}

/// The part of a layer that is on disk, and its hash so far.
struct Part {
    path: PathBuf,
    state: Option<(File, Sha256)>,
    length: u64,
}

impl Part {
    async fn open(path: &Path) -> Step<Part> {
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

    async fn append(&mut self, mut data: Vec<u8>) -> Step<Vec<u8>> {
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

    fn restart(&mut self) -> Result<()> {
        if let Some((file, hash)) = &mut self.state {
            let emptied = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0)));
            emptied.context(|| format!("Failed to empty {}", self.path.display()))?;
            *hash = Sha256::new();
        }
        self.length = 0;
        Ok(())
    }

    fn digest(&self) -> String {
        self.state.as_ref().map(|(_, hash)| files::finish(hash.clone())).unwrap_or_default()
    }
}

/// The manifest of a list that this machine can run.
fn choose(choices: &[Choice]) -> Step<String> {
    let (architecture, variants) = machine();
    let fits = |choice: &&Choice| {
        choice.platform.as_ref().is_some_and(|it| it.os == "linux" && it.architecture == architecture)
    };
    let variant = |choice: &Choice| choice.platform.as_ref().map(|it| it.variant.clone()).unwrap_or_default();
    let best = choices
        .iter()
        .filter(fits)
        .filter_map(|choice| variants.iter().position(|known| **known == variant(choice)).map(|rank| (rank, choice)));
    match best.min_by_key(|(rank, _)| *rank) {
        Some((_, choice)) => Ok(choice.digest.clone()),
        None => Err(Failure::fatal(format!("there is no image for linux/{architecture} in the list"))),
    }
}

/// Go's name for this machine, and the variants it runs, the best first.
fn machine() -> (&'static str, &'static [&'static str]) {
    match std::env::consts::ARCH {
        "x86_64" => ("amd64", &["", "v1"]),
        "aarch64" => ("arm64", &["v8", ""]),
        "arm" => ("arm", &["v7", "v6", "v5", ""]),
        "x86" => ("386", &[""]),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", &[""]),
        other => (other, &[""]),
    }
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The authorities that a registry's directory adds to those of the system.
fn certificates(dir: &Path) -> Result<Vec<Certificate>> {
    let mut found = Vec::new();
    for name in if dir.is_dir() { files::names(dir)? } else { Vec::new() } {
        if name.ends_with(".crt") {
            let path = dir.join(name);
            let data = fs::read(&path).context(|| format!("Failed to read {}", path.display()))?;
            found.push(Certificate { encoding: CertificateEncoding::Pem, data });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_speaks_plain_http() {
        for (registry, is) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("localhost.example.com", false),
            ("127.0.0.1.example.com:80", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(is_loopback(registry), is, "{registry}");
        }
    }

    #[test]
    fn a_list_is_chosen_from_by_platform() {
        let list = |text: &str| choose(&serde_json::from_str::<Vec<Choice>>(text).unwrap()).map_err(|f| f.text);
        let (here, _) = machine();
        let text = format!(
            r#"[{{"digest": "a", "platform": {{"os": "windows", "architecture": "{here}"}}}},
                {{"digest": "b", "platform": {{"os": "unknown", "architecture": "unknown"}}}},
                {{"digest": "c", "platform": {{"os": "linux", "architecture": "{here}"}}}}, {{"digest": "d"}}]"#
        );
        assert_eq!(list(&text), Ok("c".into()));
        let none = list(r#"[{"digest": "a", "platform": {"os": "linux", "architecture": "vax"}}]"#);
        assert!(none.unwrap_err().contains("linux/"));
    }

    #[test]
    fn the_kubelet_knows_a_registry_that_is_away() {
        let error = Failure::unavailable("connection refused").naming("quay.io/x:1").to_string();
        assert!(error.starts_with("RegistryUnavailable: ") && error.contains("quay.io/x:1"), "{error}");
    }
}
