//! A registry, asked over and over if need be.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::stream::StreamExt;
use oci_client::client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};

use super::failure::{Failure, FailureKind, Step, bad};
use super::manifest::{Documents, MANIFESTS, Manifest, choose};
use super::part::{CHUNK, Part};
use crate::config;
use crate::error::{Context, Error, Result, with_causes};
use crate::image::auth::{self, Credentials};
use crate::image::files;

const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Manifests and configurations are small; a registry must not fill our memory.
const DOCUMENT_LIMIT: usize = 8 << 20;

/// One repository of one registry, for the length of a pull.
pub struct Remote {
    client: Client,
    pub reference: Reference,
    auth: RegistryAuth,
    patience: Duration,
}

impl Remote {
    pub fn new(settings: &config::Images, reference: &Reference, credentials: Option<Credentials>) -> Result<Remote> {
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
            Error::failed(format!("Failed to set up a client for {registry}: {}", with_causes(&error)))
        })?;
        Ok(Remote { client, reference: reference.clone(), auth: credentials.to_auth()?, patience })
    }

    /// The manifest for this machine, by way of lists.
    pub async fn manifest(&self) -> Step<Documents> {
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
    pub async fn document(&self, descriptor: &OciDescriptor) -> Step<Vec<u8>> {
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
    pub async fn download(&self, layer: &OciDescriptor, path: &Path) -> Step<()> {
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
}
