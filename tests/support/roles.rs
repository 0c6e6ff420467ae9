//! The test program under its other names: the OCI runtime, the container's first process, the exit command.
//!
//! The runtime looks for its orders in the file `runtime` beside the script, one a line:
//!
//! | order | what it does |
//! |---|---|
//! | `stderr TEXT` | writes the line to its stderr |
//! | `flood N` | writes N bytes to its stderr |
//! | `wait PATH` | goes on when the file exists |
//! | `nocontainer` | starts no container process |
//! | `nopid`, `emptypid` | writes no pidfile, an empty one |
//! | `noconsole` | does not connect to the console socket |
//! | `cgroup PATH` | puts the container into a cgroup before its pid is known |
//! | `wait-after PATH` | goes on when the file exists, after the container was started |
//! | `linger PATH` | leaves a process behind that holds stderr until the file exists |
//! | `hang` | never ends |
//! | `exit N`, `die S` | ends so, after everything else |
//!
//! Before all of that it writes down what it was given, to `seen`.
//!
//! An exec of the service (its pid file is `.conward-exec-…` in the bundle) runs the command that it is given, by words or
//! as a process object. Its orders are in `runtime-exec`; what it was given goes to `seen-exec`, unless there is a
//! file `quiet-exec`.

use std::ffi::OsString;
use std::fs;
use std::io::{IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Fail, Outcome, procs};

pub const RUNTIME: &str = "fake-runtime";
pub const EXIT_COMMAND: &str = "exit-command";
const CONTAINER: &str = "fake-container";

/// Runs the role that the program was called as; `None` for the tests themselves.
pub fn dispatch() -> Option<ExitCode> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = Path::new(args.first()?).file_name()?.to_str()?;
    let result = match name {
        RUNTIME => runtime(&args),
        EXIT_COMMAND => exit_command(&args),
        CONTAINER => container(&args),
        _ => return None,
    };
    Some(result.unwrap_or_else(|fail| {
        let _ = writeln!(std::io::stderr(), "{name}: {fail:?}");
        ExitCode::from(99)
    }))
}

/// What the monitor asked of the runtime.
#[derive(Debug, Default)]
struct Request {
    pid_file: PathBuf,
    console: Option<PathBuf>,
    stage: PathBuf,
    /// The command of an exec of the service.
    exec: Option<Program>,
}

/// What an exec of the service runs.
#[derive(Debug, Default)]
struct Program {
    args: Vec<OsString>,
    env: Vec<OsString>,
    cwd: Option<PathBuf>,
    terminal: bool,
}

impl Request {
    /// The name of a file beside the script, which execs have of their own.
    fn file(&self, name: &str) -> PathBuf {
        self.stage.join(if self.exec.is_some() { format!("{name}-exec") } else { name.to_owned() })
    }
}

fn runtime(args: &[OsString]) -> Outcome<ExitCode> {
    let request = request(args)?;
    if request.exec.is_none() || !request.file("quiet").exists() {
        let mut seen = surroundings(args);
        seen["bundle"] = names_in(&request.stage).into();
        write_whole(&request.file("seen"), seen.to_string().as_bytes())?;
    }
    let orders = Orders(fs::read_to_string(request.file("runtime")).unwrap_or_default());
    for text in orders.all("stderr") {
        writeln!(std::io::stderr(), "{text}")?;
    }
    if let Some(count) = orders.number("flood") {
        std::io::stderr().write_all(&vec![b'e'; count])?;
    }
    for path in orders.all("wait") {
        wait_for(Path::new(path));
    }
    if !orders.has("nocontainer") {
        start(&request, &orders)?;
    }
    for path in orders.all("wait-after") {
        wait_for(Path::new(path));
    }
    if let Some(path) = orders.all("linger").next() {
        let wait = format!("while [ ! -e '{path}' ]; do sleep 0.05; done");
        Command::new("/bin/sh").args(["-c", &wait]).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    }
    if orders.has("hang") {
        wait_for(Path::new("/nonexistent"));
    }
    if let Some(signal) = orders.number("die") {
        let signal = nix::sys::signal::Signal::try_from(i32::try_from(signal).unwrap_or(9))?;
        nix::sys::signal::kill(Pid::this(), signal)?;
    }
    Ok(ExitCode::from(u8::try_from(orders.number("exit").unwrap_or(0)).unwrap_or(1)))
}

fn request(args: &[OsString]) -> Outcome<Request> {
    let mut request = Request::default();
    for pair in args.windows(2) {
        let value = PathBuf::from(&pair[1]);
        match pair[0].to_str() {
            Some("--pid-file") => request.pid_file = value,
            Some("--console-socket") => request.console = Some(value),
            Some("--bundle") => request.stage = value,
            Some("--process") => request.stage = value.parent().ok_or("a process spec lies in a directory")?.to_owned(),
            _ => {}
        }
    }
    let name = request.pid_file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name.starts_with(".conward-exec-") {
        request.stage = request.pid_file.parent().ok_or("a pid file lies in a directory")?.to_owned();
        request.exec = Some(program(args)?);
    }
    Ok(request)
}

/// The words behind `exec`: options, the container, the command.
fn program(args: &[OsString]) -> Outcome<Program> {
    let mut program = Program::default();
    let mut words = args.iter().skip_while(|word| *word != "exec").skip(1);
    while let Some(word) = words.next() {
        match word.to_str().unwrap_or_default() {
            "--detach" | "--no-new-privs" => {}
            "--tty" => program.terminal = true,
            "--process" => program = object(Path::new(words.next().ok_or("--process has a value")?))?,
            "--env" => program.env.extend(words.next().cloned()),
            "--cwd" => program.cwd = words.next().map(PathBuf::from),
            "--pid-file" | "--console-socket" | "--user" | "--cap" | "--additional-gids" => drop(words.next()),
            option if option.starts_with('-') => return Err(format!("unknown option {option}").into()),
            _ => break,
        }
    }
    if program.args.is_empty() {
        program.args.extend(words.cloned());
    }
    Ok(program)
}

/// An OCI process object.
fn object(path: &Path) -> Outcome<Program> {
    let value: Value = serde_json::from_slice(&fs::read(path)?)?;
    let list = |key: &str| -> Vec<OsString> {
        let items = value[key].as_array().into_iter().flatten();
        items.filter_map(|item| item.as_str().map(OsString::from)).collect()
    };
    Ok(Program {
        args: list("args"),
        env: list("env"),
        cwd: value["cwd"].as_str().map(PathBuf::from),
        terminal: value["terminal"].as_bool().unwrap_or(false),
    })
}

/// Starts the container, with a new terminal if one is wanted, and writes its pid down.
fn start(request: &Request, orders: &Orders) -> Outcome {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0(CONTAINER).arg(&request.stage);
    if let Some(program) = &request.exec {
        super::check(program.terminal == request.console.is_some(), "a console socket goes with a terminal")?;
        let first = program.args.first().ok_or("an exec has a command")?;
        if super::suite::in_path(first).is_none() {
            return Err(format!("exec failed: {first:?}: no such file or directory").into());
        }
    }
    let console = request.console.as_ref().filter(|_| !orders.has("noconsole"));
    if let Some(socket) = console {
        let pty = nix::pty::openpty(None, None)?;
        send_master(socket, &pty.master)?;
        let slave = || pty.slave.try_clone().map(Stdio::from);
        command.arg("tty").stdin(slave()?).stdout(slave()?).stderr(slave()?);
    } else if request.exec.is_some() {
        command.arg("pipes");
    }
    if let Some(program) = &request.exec {
        let entries = program.env.iter().filter_map(|entry| entry.to_str()?.split_once('='));
        command.args(&program.args).envs(entries);
        if let Some(dir) = &program.cwd {
            command.current_dir(dir);
        }
    }
    let child = command.spawn()?;
    for path in orders.all("cgroup") {
        fs::write(path, child.id().to_string())?;
    }
    let pid = if orders.has("emptypid") { String::new() } else { child.id().to_string() };
    if !orders.has("nopid") {
        write_whole(&request.pid_file, pid.as_bytes())?;
    }
    Ok(())
}

fn send_master(path: &Path, master: &OwnedFd) -> Outcome {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let fds = [master.as_raw_fd()];
    let name = [IoSlice::new(b"/dev/ptmx")];
    sendmsg::<()>(socket.as_raw_fd(), &name, &[ControlMessage::ScmRights(&fds)], MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Becomes the shell that runs the script: leader of a session, owner of the terminal if there is one.
fn container(args: &[OsString]) -> Outcome<ExitCode> {
    let stage = args.get(1).ok_or("a container has a stage")?;
    nix::unistd::setsid()?;
    if args.get(2).is_some_and(|word| word == "tty") {
        // The first terminal that a session leader opens becomes its own.
        fs::File::options().read(true).write(true).open("/proc/self/fd/0")?;
    }
    if let Some(program) = args.get(3) {
        return Err(Fail::from(Command::new(program).args(&args[4..]).env("D", stage).exec()));
    }
    Err(Fail::from(Command::new("/bin/sh").arg(Path::new(stage).join("script")).env("D", stage).exec()))
}

/// Writes down what an exit command can see; the first argument says where.
fn exit_command(args: &[OsString]) -> Outcome<ExitCode> {
    let record = PathBuf::from(args.get(1).ok_or("an exit command gets the path of its record")?);
    let dir = record.parent().ok_or("the record lies in a directory")?;
    if args.iter().any(|arg| arg == "leave-child") {
        Command::new("sleep").arg("30").spawn()?;
    }
    write_whole(&record, surroundings(args).to_string().as_bytes())?;
    let status = fs::read_to_string(dir.join("exit-command-status")).ok().and_then(|text| text.parse().ok());
    Ok(ExitCode::from(status.unwrap_or(0)))
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Everything about this process that a monitor decides.
fn surroundings(args: &[OsString]) -> Value {
    let text = |bytes: &OsString| String::from_utf8_lossy(bytes.as_bytes()).into_owned();
    let env: serde_json::Map<String, Value> =
        std::env::vars_os().map(|(name, value)| (text(&name), Value::from(text(&value)))).collect();
    let own = format!("/proc/{}/fd", std::process::id());
    let fds = procs::descriptors(Pid::this()).unwrap_or_default();
    let fds: serde_json::Map<String, Value> = fds
        .into_iter()
        .filter(|(_, target)| *target != own)
        .map(|(fd, target)| (fd.to_string(), target.into()))
        .collect();
    let field = |name| procs::status_field(Pid::this(), name).unwrap_or_default();
    let mode = |fd| fs::metadata(format!("/proc/self/fd/{fd}")).map_or(0, |meta| meta.mode());
    json!({
        "argv": args.iter().map(text).collect::<Vec<_>>(),
        "env": env,
        "fds": fds,
        "umask": field("Umask"),
        "blocked": field("SigBlk"),
        "cwd": std::env::current_dir().map(|dir| dir.to_string_lossy().into_owned()).unwrap_or_default(),
        "oom_score_adj": fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default().trim(),
        "modes": [mode(0), mode(1), mode(2)],
        "pid": std::process::id(),
        "parent": nix::unistd::getppid().as_raw(),
        "parent_alive": procs::alive(nix::unistd::getppid()),
        "group": nix::unistd::getpgrp().as_raw(),
        "session": nix::unistd::getsid(None).map_or(0, Pid::as_raw),
    })
}

/// The orders of a runtime.
struct Orders(String);

impl Orders {
    fn all<'a>(&'a self, verb: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.lines().filter_map(move |line| line.strip_prefix(verb)?.strip_prefix(' '))
    }

    fn has(&self, word: &str) -> bool {
        self.0.lines().any(|line| line == word)
    }

    fn number(&self, verb: &str) -> Option<usize> {
        self.all(verb).next()?.trim().parse().ok()
    }
}

/// A file that appears complete.
fn write_whole(path: &Path, bytes: &[u8]) -> Outcome {
    let new = path.with_extension("new");
    fs::write(&new, bytes)?;
    Ok(fs::rename(new, path)?)
}

/// A test never lasts longer than this; whoever is still here then is forgotten.
fn wait_for(path: &Path) {
    let end = Instant::now() + Duration::from_secs(60);
    while !path.exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
}
