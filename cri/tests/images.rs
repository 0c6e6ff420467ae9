//! Images against a registry on loopback, a containers/storage in a scratch directory, and the kernel's overlayfs.
//!
//! Needs root, docker-registry, buildah, skopeo, podman, busybox-static and openssl, and no network.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use conward_cri::config::Config;
use conward_cri::image::{self, Content, Credentials, Image, Mount, Source, Store, User};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A scratch directory that forgets its mounts when it goes.
struct Scratch {
    dir: tempfile::TempDir,
    config: Config,
}

impl Scratch {
    fn new() -> Scratch {
        let dir = tempfile::Builder::new().prefix("conward-images-").tempdir().unwrap();
        let mut config = Config { root: dir.path().join("root"), ..Config::default() };
        config.images.containers_storage = PathBuf::new();
        config.images.certs_dir = dir.path().join("certs");
        config.images.progress_timeout = 5;
        Scratch { dir, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn store(&self) -> Store {
        Store::open(&self.config).unwrap()
    }

    /// A program of the containers family on a containers/storage of its own.
    fn tool(&self, program: &str, args: &[&str]) -> String {
        let (root, run) = (self.path("cs"), self.path("cs-run"));
        let mut command = Command::new(program);
        command.args(["--root".as_ref(), root.as_os_str(), "--runroot".as_ref(), run.as_os_str()]);
        run_it(command.args(["--storage-driver", "overlay"]).args(args))
    }

    fn build(&self, name: &str, file: &str) {
        let context = self.path("context");
        fs::create_dir_all(&context).unwrap();
        fs::copy("/usr/bin/busybox", context.join("busybox")).unwrap();
        fs::write(context.join("Containerfile"), file).unwrap();
        self.tool(
            "buildah",
            &["bud", "-q", "--isolation", "chroot", "--layers", "-t", name, context.to_str().unwrap()],
        );
    }

    fn with_containers_storage(mut self) -> Scratch {
        self.config.images.containers_storage = self.path("cs");
        self
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let inside = self.dir.path().to_str().unwrap().to_owned();
        for target in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|path| path.starts_with(&inside))
        {
            let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn run_it(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn pull(store: &Store, name: &str) -> Result<Image, String> {
    pull_as(store, name, None)
}

fn pull_as(store: &Store, name: &str, credentials: Option<Credentials>) -> Result<Image, String> {
    runtime().block_on(store.pull(name, credentials)).map_err(|error| error.to_string())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn sha(data: &[u8]) -> String {
    let hex: String = Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An image in the layout of OCI, of layers given as tars.
fn layout(dir: &Path, layers: &[Vec<u8>], config: &Value) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |data: &[u8], kind: &str| {
        let digest = sha(data);
        fs::write(blobs.join(&digest[7..]), data).unwrap();
        json!({ "mediaType": kind, "digest": digest, "size": data.len() })
    };
    let diff_ids: Vec<String> = layers.iter().map(|layer| sha(layer)).collect();
    let config = json!({
        "architecture": oci_spec::image::Arch::default(), "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let layers: Vec<Value> = layers.iter().map(|layer| put(layer, "application/vnd.oci.image.layer.v1.tar")).collect();
    let manifest = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": layers });
    let mut manifest = put(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "x" });
    fs::write(dir.join("index.json"), json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, path, *data).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Bytes that do not compress.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    (0..length).map(next).collect()
}

/// docker-registry on a port of its own.
struct Registry {
    child: Child,
    host: String,
    tls: bool,
}

impl Registry {
    fn start(scratch: &Scratch, more: &str, tls: bool) -> Registry {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let dir = scratch.path(&format!("registry-{port}"));
        fs::create_dir(&dir).unwrap();
        let (data, file) = (dir.join("data"), dir.join("config.yml"));
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http:\n  addr: {host}\n{more}",
            data.display()
        );
        fs::write(&file, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Registry { child: command.spawn().unwrap(), host, tls };
        for _ in 0..200 {
            if TcpStream::connect(&registry.host).is_ok() {
                return registry;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("docker-registry does not listen");
    }

    fn plain(scratch: &Scratch) -> Registry {
        Registry::start(scratch, "", false)
    }

    fn push(&self, scratch: &Scratch, layers: &[Vec<u8>], config: &Value, name: &str, more: &[&str]) {
        let dir = scratch.path(&format!("layout-{}", name.replace(['/', ':'], "-")));
        layout(&dir, layers, config);
        let mut command = Command::new("skopeo");
        command.args(["copy", "-q", "--insecure-policy", "--dest-tls-verify=false"]).args(more);
        run_it(command.arg(format!("oci:{}:x", dir.display())).arg(format!("docker://{}/{name}", self.host)));
    }

    /// A request by hand, with the body and a header of the answer.
    fn put_manifest(&self, path: &str, kind: &str, body: &str) {
        assert!(!self.tls);
        let mut stream = TcpStream::connect(&self.host).unwrap();
        write!(
            stream,
            "PUT {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            self.host,
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A proxy before a registry that asks for tokens, counts, and cuts connections.
struct Front {
    host: String,
    seen: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone, Default)]
struct Rules {
    /// Ask for a token, which is given to this user.
    token: Option<(&'static str, &'static str)>,
    /// Cut blobs after so many bytes, so many times.
    cut: usize,
    times: usize,
    /// Send blobs slowly.
    slow: bool,
}

impl Front {
    fn start(registry: &Registry, rules: Rules) -> Front {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (to, log, own) = (registry.host.clone(), Arc::clone(&seen), host.clone());
        let cuts = Arc::new(AtomicUsize::new(0));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (to, log, own, cuts, rules) = (to.clone(), log.clone(), own.clone(), cuts.clone(), rules.clone());
                thread::spawn(move || serve(stream, &to, &own, &log, &cuts, &rules));
            }
        });
        Front { host, seen }
    }

    fn requests(&self, part: &str) -> Vec<String> {
        self.seen.lock().unwrap().iter().filter(|head| head.contains(part)).cloned().collect()
    }
}

const TOKEN: &str = "a-good-token";

fn serve(
    mut client: TcpStream,
    to: &str,
    own: &str,
    log: &Mutex<Vec<String>>,
    cuts: &AtomicUsize,
    rules: &Rules,
) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    log.lock().unwrap().push(head.clone());
    let lower = head.to_lowercase();
    if let Some((user, password)) = rules.token {
        let credentials =
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{user}:{password}"));
        if head.starts_with("GET /token") {
            let (status, body) = match head.contains(&format!("Basic {credentials}")) {
                true => ("200 OK", format!(r#"{{"token": "{TOKEN}"}}"#)),
                false => ("401 Unauthorized", r#"{"details": "wrong password"}"#.to_owned()),
            };
            let length = body.len();
            write!(client, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}").ok()?;
            return Some(());
        }
        if !lower.contains(&format!("authorization: bearer {TOKEN}")) {
            write!(
                client,
                "HTTP/1.1 401 Unauthorized\r\n\
                 WWW-Authenticate: Bearer realm=\"http://{own}/token\",service=\"test\"\r\n\
                 Content-Length: 0\r\nConnection: close\r\n\r\n"
            )
            .ok()?;
            return Some(());
        }
    }
    let mut server = TcpStream::connect(to).ok()?;
    let head: String = head
        .split_inclusive("\r\n")
        .filter(|line| !["connection:", "authorization:"].iter().any(|no| line.to_lowercase().starts_with(no)))
        .collect();
    let head = head.strip_suffix("\r\n").unwrap();
    write!(server, "{head}Connection: close\r\n\r\n").ok()?;
    let blob = head.contains("/blobs/");
    let mut left = if blob && cuts.fetch_add(1, Ordering::SeqCst) < rules.times { rules.cut } else { usize::MAX };
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = server.read(&mut buffer).ok()?.min(left);
        if count == 0 {
            break;
        }
        left -= count;
        client.write_all(&buffer[..count]).ok()?;
        if rules.slow && blob {
            thread::sleep(Duration::from_millis(20));
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    Some(())
}

fn count(dir: PathBuf) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn pull_find_share_and_remove() {
    let scratch = Scratch::new();
    let registry = Registry::plain(&scratch);
    let (base, a, b) = (tar(&[("etc/base", b"base")]), tar(&[("a", b"a")]), tar(&[("b", b"b")]));
    registry.push(&scratch, &[base.clone(), a], &json!({"User": "1002:7", "Cmd": ["/a"]}), "team/a:1", &[]);
    registry.push(&scratch, &[base.clone(), b], &json!({"User": "www-data"}), "team/b", &[]);
    let store = scratch.store();
    let name = format!("{}/team/a:1", registry.host);
    let a = pull(&store, &name).unwrap();
    assert_eq!((a.tags.clone(), a.user.clone(), a.source), (vec![name.clone()], Some(User::Uid(1002)), Source::Own));
    assert_eq!((a.layers.len(), a.layers[0].clone()), (2, sha(&base)));
    assert!(a.size > 0 && !a.pinned);
    assert_eq!(a.config.config().as_ref().unwrap().cmd().as_ref().unwrap(), &["/a"]);
    let b = pull(&store, &format!("{}/team/b", registry.host)).unwrap();
    assert_eq!(b.user, Some(User::Name("www-data".into())));

    let hex = a.id.strip_prefix("sha256:").unwrap();
    for text in [&name, &a.id, hex, &hex[..12], &a.digests[0]] {
        assert_eq!(store.find(text).map(|image| image.id), Some(a.id.clone()), "{text}");
    }
    for text in ["", "nothing", &format!("{name}2"), &format!("{}/team/a", registry.host)] {
        assert!(store.find(text).is_none(), "{text}");
    }
    let usage = store.usage();
    assert!(usage.path.is_dir() && usage.bytes > 0 && usage.inodes > 6);

    // By digest, which adds no tag; and the same again after a restart.
    store.remove(&name).unwrap();
    assert_eq!(pull(&store, &b.digests[0]).unwrap().tags, [format!("{}/team/b:latest", registry.host)]);
    let by_digest = pull(&store, &a.digests[0]).unwrap();
    assert!(by_digest.tags.is_empty() && by_digest.digests == a.digests);
    drop(store);
    let store = scratch.store();
    assert_eq!(store.list().len(), 2);
    assert_eq!(store.usage(), usage);

    let layers = scratch.path("root/images/layers");
    assert_eq!(count(layers.clone()), 3);
    store.remove(&a.id).unwrap();
    store.remove(&a.id).unwrap();
    assert_eq!(count(layers.clone()), 2);
    store.remove(&format!("{}/team/b", registry.host)).unwrap();
    assert_eq!((count(layers), count(scratch.path("root/images/blobs"))), (0, 0));
    assert_eq!((store.usage().bytes, store.usage().inodes), (0, 0));

    let error = pull(&store, &format!("{}/team/none:1", registry.host)).unwrap_err();
    assert!(error.contains("team/none:1") && error.contains("not found"), "{error}");
    let bad = format!("{}/team/a@sha256:{}", registry.host, "0".repeat(64));
    assert!(pull(&store, &bad).is_err());
}

#[test]
fn a_tag_moves_to_the_newer_image() {
    let scratch = Scratch::new();
    let registry = Registry::plain(&scratch);
    let name = format!("{}/x:latest", registry.host);
    let store = scratch.store();
    registry.push(&scratch, &[tar(&[("one", b"1")])], &json!({}), "x", &[]);
    let old = pull(&store, &name).unwrap();
    fs::remove_dir_all(scratch.path("layout-x")).unwrap();
    registry.push(&scratch, &[tar(&[("two", b"2")])], &json!({}), "x", &[]);
    let new = pull(&store, &name).unwrap();
    assert_ne!(old.id, new.id);
    assert_eq!(store.find(&name).unwrap().id, new.id);
    assert!(store.find(&old.id).unwrap().tags.is_empty());
    drop(store);
    assert_eq!(scratch.store().find(&name).unwrap().id, new.id);
}

#[test]
fn gzip_zstd_and_lists() {
    let scratch = Scratch::new();
    let registry = Registry::plain(&scratch);
    let layer = tar(&[("data", &vec![b'x'; 100_000])]);
    let format = |format| ["--dest-compress", "--dest-compress-format", format];
    registry.push(&scratch, std::slice::from_ref(&layer), &json!({}), "gzip", &format("gzip"));
    // Another layer: skopeo remembers how one was compressed the first time.
    let other = tar(&[("data", &vec![b'y'; 100_000])]);
    registry.push(&scratch, std::slice::from_ref(&other), &json!({}), "zstd", &format("zstd"));
    for (name, layer) in [("gzip", &layer), ("zstd", &other)] {
        let store = scratch.store();
        let image = pull(&store, &format!("{}/{name}", registry.host)).unwrap();
        let manifests = fs::read_dir(scratch.path("root/images/blobs")).unwrap().flatten();
        let text: String = manifests.map(|entry| fs::read_to_string(entry.path()).unwrap()).collect();
        assert!(text.contains(&format!("tar+{name}")), "{name}: {text}");
        assert_eq!(image.layers, [sha(layer)]);
        let file = scratch.path(&format!("root/images/layers/{}/fs/data", &sha(layer)[7..]));
        assert_eq!(fs::metadata(file).unwrap().len(), 100_000);
        store.remove(&image.id).unwrap();
    }
    let store = scratch.store();
    let image = pull(&store, &format!("{}/gzip", registry.host)).unwrap();
    let digest = image.digests[0].split('@').nth(1).unwrap();
    let size = fs::metadata(scratch.path(&format!("root/images/blobs/{}", &digest[7..]))).unwrap().len();
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let index = "application/vnd.oci.image.index.v1+json";
    let list = json!({ "schemaVersion": 2, "mediaType": index, "manifests": [
        { "mediaType": kind, "digest": digest, "size": size, "platform": { "os": "windows", "architecture": "amd64" } },
        { "mediaType": kind, "digest": digest, "size": size,
          "platform": { "os": "linux", "architecture": oci_spec::image::Arch::default() } },
    ]})
    .to_string();
    registry.put_manifest("/v2/gzip/manifests/list", index, &list);
    let by_list = pull(&store, &format!("{}/gzip:list", registry.host)).unwrap();
    assert_eq!((by_list.id, by_list.tags.len()), (image.id, 2));
    let of_list = format!("{}/gzip@{}", registry.host, sha(list.as_bytes()));
    assert!(by_list.digests.contains(&of_list));
    assert!(pull(&store, &of_list).is_ok());
    let other = json!({ "schemaVersion": 2, "mediaType": index, "manifests": [
        { "mediaType": kind, "digest": digest, "size": size, "platform": { "os": "linux", "architecture": "s390x" } },
    ]});
    registry.put_manifest("/v2/gzip/manifests/other", index, &other.to_string());
    let error = pull(&store, &format!("{}/gzip:other", registry.host)).unwrap_err();
    assert!(error.contains("no image for linux/"), "{error}");
}

#[test]
fn basic_authorization() {
    let mut scratch = Scratch::new();
    let passwords = scratch.path("htpasswd");
    // user:secret, as bcrypt.
    let line = run_it(Command::new("python3").args([
        "-W",
        "ignore",
        "-c",
        "import crypt; print('user:' + crypt.crypt('secret', crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)))",
    ]));
    fs::write(&passwords, line).unwrap();
    let more = format!("auth:\n  htpasswd: {{realm: x, path: {}}}\n", passwords.display());
    let registry = Registry::start(&scratch, &more, false);
    registry.push(&scratch, &[tar(&[("f", b"f")])], &json!({}), "p/x", &["--dest-creds", "user:secret"]);
    let name = format!("{}/p/x:latest", registry.host);
    let user = |password: &str| {
        Some(Credentials { username: "user".into(), password: password.into(), ..Credentials::default() })
    };
    let store = scratch.store();
    for credentials in [None, user("wrong")] {
        let error = pull_as(&store, &name, credentials).unwrap_err();
        assert!(error.contains("Not authorized") && !error.starts_with("RegistryUnavailable"), "{error}");
    }
    let image = pull_as(&store, &name, user("secret")).unwrap();
    store.remove(&image.id).unwrap();
    drop(store);
    scratch.config.images.auth_file = scratch.path("auth.json");
    let auths = json!({ "auths": { format!("{}/p", registry.host): { "auth": "dXNlcjpzZWNyZXQ=" } } });
    fs::write(&scratch.config.images.auth_file, auths.to_string()).unwrap();
    pull(&scratch.store(), &name).unwrap();
}

#[test]
fn token_authorization() {
    let scratch = Scratch::new();
    let registry = Registry::plain(&scratch);
    registry.push(&scratch, &[tar(&[("f", b"f")])], &json!({}), "p/x", &[]);
    let front = Front::start(&registry, Rules { token: Some(("user", "secret")), ..Rules::default() });
    let name = format!("{}/p/x:latest", front.host);
    let store = scratch.store();
    let auth = |text: &str| Some(Credentials { auth: text.into(), ..Credentials::default() });
    let error = pull_as(&store, &name, auth("dXNlcjp3cm9uZw==")).unwrap_err();
    assert!(error.contains("wrong password"), "{error}");
    assert!(pull(&store, &name).is_err());
    pull_as(&store, &name, auth("dXNlcjpzZWNyZXQ=")).unwrap();
    assert!(front.requests("GET /token").iter().all(|head| head.contains("repository%3Ap%2Fx%3Apull")));
    store.remove(&name).unwrap();
    let token = Credentials { registry_token: TOKEN.into(), ..Credentials::default() };
    pull_as(&store, &name, Some(token)).unwrap();
}

#[test]
fn tls_with_an_authority_of_its_own() {
    let scratch = Scratch::new();
    let (key, certificate) = (scratch.path("key.pem"), scratch.path("cert.pem"));
    run_it(
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate),
    );
    let more = format!("  tls: {{certificate: {}, key: {}}}\n", certificate.display(), key.display());
    let registry = Registry::start(&scratch, &more, true);
    registry.push(&scratch, &[tar(&[("f", b"f")])], &json!({}), "x", &[]);
    let name = format!("{}/x", registry.host);
    let store = scratch.store();
    assert!(pull(&store, &name).is_err());
    let certs = scratch.path("certs").join(&registry.host);
    fs::create_dir_all(&certs).unwrap();
    fs::copy(&certificate, certs.join("ca.crt")).unwrap();
    pull(&store, &name).unwrap();
}

#[test]
fn broken_connections_are_resumed() {
    let scratch = Scratch::new();
    let registry = Registry::plain(&scratch);
    let layer = tar(&[("noise", &noise(1_500_000, 1))]);
    registry.push(&scratch, std::slice::from_ref(&layer), &json!({}), "x", &[]);
    let front = Front::start(&registry, Rules { cut: 600_000, times: 3, ..Rules::default() });
    let store = scratch.store();
    let image = pull(&store, &format!("{}/x", front.host)).unwrap();
    assert_eq!(image.layers, [sha(&layer)]);
    let ranges: Vec<String> = front
        .requests("/blobs/")
        .iter()
        .filter_map(|head| head.lines().find_map(|line| line.strip_prefix("range: bytes=").map(str::to_owned)))
        .collect();
    assert!(ranges.len() >= 3 && ranges[1..].iter().all(|range| range != "0-"), "{ranges:?}");
    assert_eq!(count(scratch.path("root/images/partial")), 0);
}

#[test]
fn a_pull_that_is_given_up_is_continued_by_the_next() {
    let scratch = Scratch::new();
    let registry = Registry::plain(&scratch);
    let layer = tar(&[("noise", &noise(1_500_000, 2))]);
    registry.push(&scratch, std::slice::from_ref(&layer), &json!({}), "x", &["--dest-decompress"]);
    let slow = Front::start(&registry, Rules { slow: true, ..Rules::default() });
    let store = scratch.store();
    let name = format!("{}/x", slow.host);
    runtime().block_on(async {
        let given_up = tokio::time::timeout(Duration::from_millis(1500), store.pull(&name, None)).await;
        assert!(given_up.is_err());
    });
    let part = fs::read_dir(scratch.path("root/images/partial")).unwrap().next().unwrap().unwrap();
    let length = part.metadata().unwrap().len();
    assert!(length > 0 && length < 1_500_000, "{length}");
    drop(store);
    let store = scratch.store();
    let fast = Front::start(&registry, Rules::default());
    pull(&store, &format!("{}/x", fast.host)).unwrap();
    assert_eq!(fast.requests(&format!("bytes={length}-")).len(), 1);
}

#[test]
fn pulls_of_one_image_are_one() {
    let scratch = Scratch::new();
    let registry = Registry::plain(&scratch);
    let layers = [tar(&[("a", &noise(300_000, 3))]), tar(&[("b", &noise(300_000, 4))])];
    registry.push(&scratch, &layers, &json!({}), "x", &[]);
    let front = Front::start(&registry, Rules { slow: true, ..Rules::default() });
    let store = scratch.store();
    let name = format!("{}/x", front.host);
    runtime().block_on(async {
        let (a, b, c) = tokio::join!(store.pull(&name, None), store.pull(&name, None), store.pull(&name, None));
        assert_eq!((a.unwrap().id, b.unwrap().id.clone()), (c.as_ref().unwrap().id.clone(), c.unwrap().id));
    });
    assert_eq!(front.requests("/blobs/").len(), 3, "configuration and two layers");
    pull(&store, &name).unwrap();
    assert_eq!(front.requests("/blobs/").len(), 3, "nothing twice");
}

#[test]
fn a_registry_that_is_away_or_silent() {
    let mut scratch = Scratch::new();
    scratch.config.images.progress_timeout = 1;
    let store = scratch.store();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = pull(&store, &format!("127.0.0.1:{port}/x")).unwrap_err();
    assert!(error.starts_with("RegistryUnavailable: ") && error.contains("refused"), "{error}");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = pull(&store, &format!("{}/x", silent.local_addr().unwrap())).unwrap_err();
    assert!(error.starts_with("RegistryUnavailable: "), "{error}");
}

#[test]
fn hostile_layers_leave_nothing() {
    let scratch = Scratch::new();
    let registry = Registry::plain(&scratch);
    let evil = renamed(tar(&[("evil", b"")]), "../../../evil");
    registry.push(&scratch, &[evil], &json!({}), "x", &[]);
    let store = scratch.store();
    let error = pull(&store, &format!("{}/x", registry.host)).unwrap_err();
    assert!(error.contains("leads out"), "{error}");
    for part in ["layers", "records", "tmp", "partial"] {
        assert_eq!(count(scratch.path("root/images").join(part)), 0, "{part}");
    }
}

/// A name that the library would not write.
fn renamed(mut tar: Vec<u8>, name: &str) -> Vec<u8> {
    let mut header = tar::Header::from_byte_slice(&tar[..512]).clone();
    header.as_old_mut().name = [0; 100];
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    tar[..512].copy_from_slice(header.as_bytes());
    tar
}

fn run_in(root: &Path, args: &[&str]) -> String {
    run_it(Command::new("chroot").arg(root).args(args))
}

#[test]
fn root_file_systems() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let busybox = image::busybox(&store, image::BUSYBOX).unwrap();
    assert_eq!(image::busybox(&store, image::BUSYBOX).unwrap().id, busybox.id, "the same program makes the same image");
    assert_eq!(busybox.tags, [image::BUSYBOX]);
    assert!(store.find("conward/busybox").unwrap().pinned);
    let target = scratch.path("rootfs");
    store.mount(&busybox, "c1", &target, &Mount::default()).unwrap();
    run_in(&target, &["/bin/sh", "-c", "test $(stat -c %a /tmp) = 1777 && echo hello > /new && rm /etc/group"]);
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o755);
    let (bytes, inodes) = store.rw_usage("c1").unwrap();
    assert!(bytes >= 4096 && inodes == 3, "{bytes} {inodes}");

    // The image goes, its layer stays for the container, and is found again.
    store.remove(image::BUSYBOX).unwrap();
    assert!(store.list().is_empty());
    assert_eq!(run_in(&target, &["/bin/cat", "/new"]), "hello\n");
    drop(store);
    let store = scratch.store();
    assert_eq!(store.rw_ids(), ["c1"]);
    store.mount(&busybox, "c1", &target, &Mount::default()).unwrap();
    assert_eq!(run_in(&target, &["/bin/cat", "/new"]), "hello\n");
    assert!(!target.join("etc/group").exists());
    store.unmount("c1").unwrap();
    store.unmount("c1").unwrap();
    assert!(!target.join("new").exists());

    // Killed with the mount in place: what is on disk is enough.
    store.mount(&busybox, "c1", &target, &Mount::default()).unwrap();
    drop(store);
    let store = scratch.store();
    for id in store.rw_ids() {
        store.remove_rw(&id).unwrap();
        store.remove_rw(&id).unwrap();
    }
    assert!(!target.join("bin").exists() && store.rw_ids().is_empty());
    for dir in ["root/containers-rw", "root/images/layers"] {
        assert_eq!(count(scratch.path(dir)), 0, "{dir}");
    }
    let error = store.mount(&busybox, "c1", &target, &Mount::default()).unwrap_err().to_string();
    assert!(error.contains("is not there any more"), "{error}");
    assert!(store.mount(&busybox, "../x", &target, &Mount::default()).is_err());
}

#[test]
fn read_only_and_many_layers() {
    let scratch = Scratch::new();
    let registry = Registry::plain(&scratch);
    let mut layers: Vec<Vec<u8>> = (0..60)
        .map(|n| tar(&[(format!("f{n}").as_str(), b"x".as_slice()), ("last", format!("{n}").as_bytes())]))
        .collect();
    layers.push(tar(&[(".wh.f0", b""), ("d/.wh..wh..opq", b"")]));
    // A layer that is there twice.
    layers.push(layers[5].clone());
    registry.push(&scratch, &layers, &json!({}), "many", &[]);
    let store = scratch.store();
    let many = pull(&store, &format!("{}/many", registry.host)).unwrap();
    let target = scratch.path("m");
    store.mount(&many, "c", &target, &Mount::default()).unwrap();
    assert!(!target.join("f0").exists() && target.join("f1").exists() && target.join("f59").exists());
    assert_eq!(fs::read_to_string(target.join("last")).unwrap(), "5");

    let volume = scratch.path("v");
    let read_only = Mount { read_only: true, ..Mount::default() };
    let busybox = image::busybox(&store, image::BUSYBOX).unwrap();
    store.mount(&busybox, "c", &volume, &read_only).unwrap();
    assert!(volume.join("bin/busybox").exists());
    let error = fs::write(volume.join("x"), "x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    store.remove_rw("c").unwrap();
    assert!(!volume.join("bin").exists() && !target.join("f1").exists());
}

#[test]
fn what_a_crash_leaves_is_removed() {
    let scratch = Scratch::new();
    let store = scratch.store();
    let busybox = image::busybox(&store, image::BUSYBOX).unwrap();
    drop(store);
    let images = scratch.path("root/images");
    fs::create_dir_all(images.join("layers").join("1".repeat(64)).join("fs/bin")).unwrap();
    fs::create_dir_all(images.join("tmp/layer-7/fs")).unwrap();
    fs::write(images.join("blobs").join("2".repeat(64)), "x").unwrap();
    fs::write(images.join("records/broken.json"), "{").unwrap();
    let store = scratch.store();
    assert_eq!(store.list().len(), 1);
    for (part, left) in [("layers", 1), ("tmp", 0), ("blobs", 1), ("records", 1)] {
        assert_eq!(count(images.join(part)), left, "{part}");
    }
    drop(store);
    fs::remove_file(images.join("layers").join(&busybox.layers[0][7..]).join("done")).unwrap();
    let store = scratch.store();
    assert!(store.list().is_empty());
    for part in ["layers", "blobs", "records"] {
        assert_eq!(count(images.join(part)), 0, "{part}");
    }
}

/// Locks are of open files, so that two stores are as good as two processes.
#[test]
fn two_processes_have_one_store() {
    let scratch = Scratch::new();
    let (one, two) = (scratch.store(), scratch.store());
    let name = "localhost/new:1";
    let made = image::busybox(&two, name).unwrap();
    assert_eq!(one.find(name).unwrap().id, made.id);
    assert_eq!(one.usage(), two.usage());
    // Its layer is below a container that only one of them has made.
    let target = scratch.path("mnt");
    one.mount(&made, "c", &target, &Mount::default()).unwrap();
    two.remove(name).unwrap();
    assert!(one.find(name).is_none() && target.join("bin/busybox").exists());
    assert_eq!(count(scratch.path("root/images/layers")), 1);
    one.remove_rw("c").unwrap();
    assert_eq!(count(scratch.path("root/images/layers")), 0);
    assert_eq!(two.usage().bytes, 0);
}

#[test]
fn what_another_process_is_making_stays() {
    let scratch = Scratch::new();
    let registry = Registry::plain(&scratch);
    let layers = [tar(&[("a", b"small")]), tar(&[("b", &noise(1_500_000, 4))])];
    registry.push(&scratch, &layers, &json!({}), "x", &["--dest-decompress"]);
    let front = Front::start(&registry, Rules { slow: true, ..Rules::default() });
    let (one, two) = (scratch.store(), scratch.store());
    let images = scratch.path("root/images");
    let name = format!("{}/x", front.host);
    let pulling = thread::spawn(move || pull(&one, &name).unwrap());
    let begun = || count(images.join("layers")) == 1 && count(images.join("partial")) == 1;
    for _ in 0..500 {
        if begun() {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert!(begun(), "one layer is there, and the other on its way");
    image::busybox(&two, "localhost/other:1").unwrap();
    two.remove("localhost/other:1").unwrap();
    drop(two);
    // A third that comes meanwhile does not tidy up either.
    drop(scratch.store());
    assert_eq!((count(images.join("layers")), count(images.join("partial"))), (2, 1));
    let pulled = pulling.join().unwrap();
    assert_eq!(pulled.layers.len(), 2);
    // What could not be removed then is by the next who can.
    assert_eq!(count(images.join("layers")), 3);
    scratch.store();
    assert_eq!(count(images.join("layers")), 2);
}

#[test]
fn pinned_by_configuration_and_imports() {
    let mut scratch = Scratch::new();
    let registry = Registry::plain(&scratch);
    registry.push(&scratch, &[tar(&[("f", b"f")])], &json!({}), "pause:1", &[]);
    scratch.config.images.pinned = vec![format!("{}/pause*", registry.host)];
    let store = scratch.store();
    let name = format!("{}/pause:1", registry.host);
    pull(&store, &name).unwrap();
    assert!(store.find(&name).unwrap().pinned);

    let tree = scratch.path("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/b/file"), "text").unwrap();
    std::os::unix::fs::symlink("b/file", tree.join("a/link")).unwrap();
    let config = || {
        serde_json::from_value(json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": []}}))
        .unwrap()
    };
    let image = store.import("example.com/tree:2", Content::Directory(&tree), config()).unwrap();
    assert_eq!((image.tags.clone(), image.pinned), (vec!["example.com/tree:2".to_owned()], true));
    store.mount(&image, "c", &scratch.path("m"), &Mount::default()).unwrap();
    assert_eq!(fs::read_to_string(scratch.path("m/a/link")).unwrap(), "text");
    store.remove_rw("c").unwrap();
}

const FILE: &str = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY Containerfile /one\nENTRYPOINT [\"/bin/busybox\"]\n";

#[test]
fn images_of_buildah_and_skopeo_run_without_a_pull() {
    let scratch = Scratch::new().with_containers_storage();
    scratch.build("localhost/built:1", FILE);
    layout(&scratch.path("oci"), &[tar(&[("copied", b"yes")])], &json!({}));
    let storage = format!("[overlay@{}+{}]", scratch.path("cs").display(), scratch.path("cs-run").display());
    run_it(
        Command::new("skopeo")
            .args(["copy", "-q", "--insecure-policy"])
            .arg(format!("oci:{}:x", scratch.path("oci").display()))
            .arg(format!("containers-storage:{storage}example.com/copied:2")),
    );
    let store = scratch.store();
    let listed: HashMap<String, Image> = store.list().into_iter().map(|image| (image.tags[0].clone(), image)).collect();
    assert_eq!(listed.len(), 2, "{:?}", listed.keys());
    let built = &listed["localhost/built:1"];
    assert_eq!((built.source, built.pinned), (Source::ContainersStorage, true));
    assert!(built.size > 100_000 && built.digests[0].starts_with("localhost/built@sha256:"));
    assert_eq!(store.find("built:1").unwrap().id, built.id);
    assert_eq!(store.usage().bytes, 0);
    let error = store.remove("built:1").unwrap_err().to_string();
    assert!(error.contains("containers/storage"), "{error}");

    let target = scratch.path("rootfs");
    store.mount(built, "c", &target, &Mount::default()).unwrap();
    let ours = store.find("built:1").unwrap();
    assert_eq!((ours.source, ours.pinned), (Source::Own, false));
    let linked = target.join("bin/busybox");
    assert_eq!(run_in(&target, &["/bin/busybox", "echo", "runs"]), "runs\n");

    // Gone over there, by force; here it still runs, and from the disk.
    scratch.tool("podman", &["rmi", "-f", "localhost/built:1"]);
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    assert!(linked.exists());
    assert_eq!(run_in(&target, &["/bin/busybox", "echo", "still"]), "still\n");
    assert!(target.join("one").exists());
    assert_eq!(store.find("built:1").unwrap().source, Source::Own);
    // Their store is none the worse.
    assert!(scratch.tool("podman", &["images", "-q"]).lines().count() == 1);
    scratch.build("localhost/built:1", FILE);
    store.remove_rw("c").unwrap();

    let copied = store.adopt(&listed["example.com/copied:2"].id).unwrap();
    assert_eq!((copied.source, copied.tags), (Source::Own, vec!["example.com/copied:2".to_owned()]));
    // Ours goes, theirs stays listed.
    store.remove(&copied.id).unwrap();
    assert_eq!(store.find("example.com/copied:2").unwrap().source, Source::ContainersStorage);
}

#[test]
fn a_name_that_is_built_anew_means_the_new_image() {
    let scratch = Scratch::new().with_containers_storage();
    scratch.build("localhost/app", FILE);
    let store = scratch.store();
    let old = store.adopt(&store.find("app").unwrap().id).unwrap();
    scratch.build("localhost/app", &format!("{FILE}ENV NEW=1\n"));
    let new = store.find("app").unwrap();
    assert_ne!(old.id, new.id);
    assert_eq!(new.source, Source::ContainersStorage);
    // Layers in common are not linked twice.
    let adopted = store.adopt(&new.id).unwrap();
    assert_eq!(store.find("app").unwrap().id, adopted.id);
    drop(store);
    assert_eq!(scratch.store().find("app").unwrap().id, adopted.id);
}

#[test]
fn podman_is_not_kept_waiting() {
    let scratch = Scratch::new().with_containers_storage();
    scratch.build("localhost/app", FILE);
    let store = scratch.store();
    let image = store.find("app").unwrap();
    store.mount(&image, "c", &scratch.path("m"), &Mount::default()).unwrap();
    // With a container of ours in use and our lists read, their writers get their locks.
    assert!(scratch.tool("podman", &["images"]).contains("localhost/app"));
    scratch.tool("buildah", &["tag", "localhost/app", "localhost/other"]);
    assert_eq!(store.find("other").unwrap().id, image.id);
    store.remove_rw("c").unwrap();
}
