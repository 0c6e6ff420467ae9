//! kubectl itself, over SPDY and over WebSocket.
//!
//! Runs every `kubectl` that `CONWARD_KUBECTL` names, separated by colons, or the one in PATH. `cri/tests/run kubectl`
//! reports that there is none as skipped.

#[path = "fake/mod.rs"]
mod fake;
#[path = "shim/mod.rs"]
mod shim;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use conward_cri::streaming::{AttachRequest, ExecRequest, PortForwardRequest, Streaming};
use fake::Fake;
use futures_util::FutureExt;
use shim::Ask;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Makes kubectl use WebSocket, or not; those before 1.29 do not know it.
const WEB: &str = "KUBECTL_REMOTE_COMMAND_WEBSOCKETS";

/// Programs, each without WebSocket and, if it knows that, with it.
fn kubectls() -> Vec<(String, bool)> {
    let names = std::env::var("CONWARD_KUBECTL").unwrap_or_else(|_| "kubectl".into());
    let programs = names.split(':').map(|name| {
        let program = conward_cri::runtime::in_path(name.as_ref()).unwrap_or_else(|| panic!("{name} is not there"));
        let text = std::fs::read(&program).unwrap();
        let knows_web = memchr::memmem::find(&text, WEB.as_bytes()).is_some();
        (name.to_owned(), knows_web)
    });
    programs.flat_map(|(name, web)| [Some((name.clone(), false)), web.then_some((name, true))]).flatten().collect()
}

/// A cluster of one fake pod.
struct Cluster {
    _runtime: Runtime,
    address: SocketAddr,
    home: TempDir,
    program: String,
    web: bool,
}

impl Cluster {
    fn start(program: String, web: bool) -> Cluster {
        let runtime = Runtime::new().unwrap();
        let address = runtime.block_on(async {
            let (server, _) = Fake::serve(|_| ()).await;
            shim::start(Arc::new(move |ask| {
                let url = url(&server, &ask).map_err(|error| error.to_string());
                async move { url }.boxed()
            }))
            .await
        });
        Cluster { _runtime: runtime, address, home: tempfile::tempdir().unwrap(), program, web }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        let switch = if self.web { "true" } else { "false" };
        command
            .env("HOME", self.home.path())
            .env("KUBECONFIG", "/dev/null")
            .env(WEB, switch)
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", switch)
            .arg(format!("--server=http://{}", self.address))
            .args(words);
        command
    }

    /// Runs kubectl with an input to its end.
    fn run(&self, words: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut to = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            // kubectl may end before it has read all.
            scope.spawn(move || drop(to.write_all(input)));
            child.wait_with_output().unwrap()
        })
    }

    /// Runs kubectl on a terminal of some size.
    fn run_on_terminal(&self, words: &[&str], input: &str) -> String {
        let line: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let line =
            format!("stty rows 33 cols 101; {} --server=http://{} {}", self.program, self.address, line.join(" "));
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]);
        for (name, value) in self.command(&[]).get_envs() {
            command.env(name, value.unwrap());
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut to = child.stdin.take().unwrap();
        to.write_all(input.as_bytes()).unwrap();
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        drop(to);
        child.wait().unwrap();
        text
    }
}

fn url(server: &Streaming, ask: &Ask) -> conward_cri::error::Result<String> {
    let (tty, stdin, stdout) = (ask.is("tty"), ask.is("stdin"), ask.is("stdout"));
    let stderr = ask.is("stderr") && !tty;
    let container = ask.pod.clone();
    match ask.subresource.as_str() {
        "exec" => {
            let command = ask.values("command");
            server.exec(ExecRequest { container, command, tty, stdin, stdout, stderr })
        }
        "attach" => server.attach(AttachRequest { container, tty, stdin, stdout, stderr }),
        _ => server.port_forward(PortForwardRequest { pod: container, ports: Vec::new() }),
    }
}

fn each(test: impl Fn(&Cluster)) {
    for (program, web) in kubectls() {
        eprintln!("{program}, {}", if web { "WebSocket" } else { "SPDY" });
        test(&Cluster::start(program, web));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn exec_passes_bytes_and_exit_codes() {
    each(|cluster| {
        let out = cluster.run(&["exec", "-i", "pod", "--", "cat"], b"line\n");
        assert_eq!((text(&out.stdout), text(&out.stderr), out.status.code()), ("line\n".into(), "".into(), Some(0)));
        let out = cluster.run(&["exec", "pod", "--", "sh", "-c", "echo out; echo err >&2; exit 7"], b"");
        assert_eq!((text(&out.stdout), out.status.code()), ("out\n".into(), Some(7)));
        assert!(text(&out.stderr).starts_with("err\n") && text(&out.stderr).contains("exit code 7"));
        let out = cluster.run(&["exec", "pod", "--", "/no/such/program"], b"");
        assert!(!out.status.success() && text(&out.stderr).contains("exec failed"), "{}", text(&out.stderr));
    });
}

#[test]
fn exec_passes_a_lot() {
    each(|cluster| {
        let sent: Vec<u8> =
            (0u32..500 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).take(500 << 20).collect();
        let out = cluster.run(&["exec", "-i", "pod", "--", "cat"], &sent);
        assert!(out.stdout == sent, "{} of {} bytes, or others: {}", out.stdout.len(), sent.len(), text(&out.stderr));
        assert!(out.status.success());
    });
}

#[test]
fn exec_on_a_terminal_has_its_size() {
    each(|cluster| {
        let seen = cluster.run_on_terminal(&["exec", "-it", "pod", "--", "sizes", "1"], "");
        assert!(seen.contains("33x101"), "{seen}");
        let seen = cluster.run_on_terminal(&["exec", "-it", "pod", "--", "bash", "--norc"], "echo $((6*7))x; exit\n");
        assert!(seen.contains("42x"), "{seen}");
    });
}

#[test]
fn attach_joins_the_container() {
    each(|cluster| {
        let out = cluster.run(&["attach", "-i", "pod"], b"typed\n");
        assert!(text(&out.stdout).ends_with("attached to pod\ntyped\n"), "{out:?}");
        assert!(out.status.success(), "{out:?}");
    });
}

#[test]
fn cp_copies_both_ways() {
    each(|cluster| {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let content: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.wrapping_mul(40_503).to_le_bytes()).collect();
        std::fs::write(path("a"), &content).unwrap();
        let out = cluster.run(&["cp", &path("a"), &format!("default/pod:{}", path("b"))], b"");
        assert!(out.status.success(), "{out:?}");
        let out = cluster.run(&["cp", &format!("default/pod:{}", path("b")), &path("c")], b"");
        assert!(out.status.success(), "{out:?}");
        assert!(std::fs::read(path("b")).unwrap() == content && std::fs::read(path("c")).unwrap() == content);
    });
}

/// Ended with its scope.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server that sends back a line, after a short thought.
fn line_server() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for tcp in listener.incoming() {
            std::thread::spawn(move || {
                let mut tcp = tcp.unwrap();
                let mut line = [0; 8];
                tcp.read_exact(&mut line).unwrap();
                std::thread::sleep(Duration::from_millis(100));
                tcp.write_all(&line).unwrap();
            });
        }
    });
    port
}

#[test]
fn port_forward_serves_thirty_at_a_time_and_survives_a_closed_port() {
    each(|cluster| {
        let (port, closed) = (line_server(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let closed = { closed.local_addr().unwrap().port() };
        let mut command = cluster.command(&["port-forward", "pod", &format!(":{port}"), &format!(":{closed}")]);
        let mut child = Running(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
        let local = forwarded(&mut child.0, port);
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for n in 0..30 {
                scope.spawn(move || {
                    let mut tcp = TcpStream::connect(("127.0.0.1", local)).unwrap();
                    let line = format!("line {n:02}\n");
                    tcp.write_all(line.as_bytes()).unwrap();
                    let mut answer = String::new();
                    tcp.read_to_string(&mut answer).unwrap();
                    assert_eq!(answer, line);
                });
            }
        });
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    });
}

/// The local port that kubectl says it has for a port of the pod.
fn forwarded(child: &mut Child, port: u16) -> u16 {
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    loop {
        let mut line = String::new();
        assert!(std::io::BufRead::read_line(&mut out, &mut line).unwrap() > 0, "kubectl ended");
        let end = format!(" -> {port}\n");
        if let Some(local) = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.strip_suffix(&end)) {
            // Whoever goes on reading keeps kubectl from a closed pipe.
            let local = local.parse().unwrap();
            std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
            return local;
        }
    }
}
