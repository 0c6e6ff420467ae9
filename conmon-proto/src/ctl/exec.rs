//! `exec` and `exec-result`: one more process in the container, and how one ended.

use conmon_proto::{Client, ExecResult, ExecSpec, Exit, ExitReason, OnDisconnect, output};
use serde_json::json;

use crate::attach::status;
use crate::fail::{Done, Fail, OK, OURS};
use crate::keys::{DEFAULT, Keys};
use crate::line::{Item, Line, print, print_json};
use crate::talk::{self, Input, Other, Out, Outcome, Signals, Talk};
use crate::target::{self, Target};
use crate::term::{self, Raw};
use crate::{json, show};

struct Wish {
    container: Option<String>,
    spec: ExecSpec,
    detach: bool,
    keys: Keys,
}

pub async fn run(mut line: Line) -> Done {
    let result = match read(&mut line) {
        Ok(wish) => exec(&line, wish).await,
        Err(fail) => Err(fail),
    };
    result.map_err(Fail::ours)
}

fn read(line: &mut Line) -> Result<Wish, Fail> {
    let mut spec = ExecSpec::default();
    let (mut detach, mut keys, mut container) = (false, DEFAULT.to_owned(), None);
    while line.socket.is_none() || container.is_none() {
        let option = match line.next()? {
            None => break,
            Some(Item::Word(word)) => {
                // What follows is the command's.
                match line.socket {
                    Some(_) => spec.args.push(line.utf8(word)?),
                    None => container = Some(line.utf8(word)?),
                }
                break;
            }
            Some(Item::Option(option)) => option,
        };
        match &option[..] {
            "-i" | "--interactive" => spec.stdin = true,
            "-t" | "--tty" => spec.terminal = true,
            "-d" | "--detach" => detach = true,
            "-e" | "--env" => spec.env.push(variable(line)?),
            "-w" | "--workdir" => spec.cwd = line.text()?,
            "-u" | "--user" => spec.user = line.text()?,
            "--group" => spec.additional_gids.push(line.number()?),
            "--cap" => spec.capabilities.push(capability(&line.text()?)),
            "--no-new-privileges" => spec.no_new_privileges = true,
            "--timeout" => spec.timeout = seconds(line)?,
            "--output-max" => spec.output_max = line.size()?,
            "--process" => spec.process = process(line)?,
            "--detach-keys" => keys = line.text()?,
            _ => return Err(line.unknown(&option)),
        }
    }
    spec.args.extend(line.rest()?);
    if line.socket.is_none() && container.is_none() {
        return Err(line.mistake("CONTAINER is missing"));
    }
    if spec.args.is_empty() == spec.process.is_empty() {
        return Err(line.mistake("there must be a COMMAND or --process, and not both"));
    }
    if detach {
        spec.on_disconnect = OnDisconnect::Detach;
    }
    let keys = Keys::parse(&keys).map_err(|text| line.mistake(text))?;
    Ok(Wish { container, spec, detach, keys })
}

/// `NAME=VALUE`, or a NAME of our own environment.
fn variable(line: &mut Line) -> Result<String, Fail> {
    let text = line.text()?;
    if text.contains('=') {
        return Ok(text);
    }
    match std::env::var(&text) {
        Ok(value) => Ok(format!("{text}={value}")),
        Err(_) => Err(line.mistake(format!("'{text}' is not in the environment"))),
    }
}

/// `NET_ADMIN` and `cap_net_admin` are `CAP_NET_ADMIN`.
fn capability(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    if name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
}

/// Seconds, perhaps with a fraction, as milliseconds.
fn seconds(line: &mut Line) -> Result<u64, Fail> {
    let seconds: f64 = line.number()?;
    if !(0.0..1e12).contains(&seconds) {
        return Err(line.mistake(format!("--timeout cannot be {seconds} seconds")));
    }
    Ok(std::time::Duration::from_secs_f64(seconds).as_millis().try_into().unwrap_or(u64::MAX))
}

fn process(line: &mut Line) -> Result<Vec<u8>, Fail> {
    let path = line.value()?;
    let name = path.to_string_lossy();
    let text = std::fs::read(&path).map_err(|error| Fail::new(format!("cannot read {name}: {error}")))?;
    match serde_json::from_slice::<serde_json::Value>(&text) {
        Ok(value) if value.is_object() => Ok(text),
        Ok(_) => Err(Fail::new(format!("{name} is no process: not a JSON object"))),
        Err(error) => Err(Fail::new(format!("{name} is no process: {error}"))),
    }
}

async fn exec(line: &Line, mut wish: Wish) -> Done {
    let (client, target) = target::client(line, wish.container.as_deref()).await?;
    if wish.detach {
        return leave(line, &client, &target, &wish.spec).await;
    }
    if line.json {
        return capture(&client, &target, &wish.spec).await;
    }
    let sized = wish.spec.terminal && term::size().is_some();
    if let Some((rows, columns)) = term::size().filter(|_| sized) {
        (wish.spec.rows, wish.spec.columns) = (rows, columns);
    }
    let signals = Signals::catch()?;
    let (output, mut events) = output();
    let exec = start(&client, &wish.spec, Some(output)).await?;
    let keys = if wish.spec.terminal { wish.keys } else { Keys::parse("").unwrap_or(wish.keys) };
    let input = wish.spec.stdin.then(|| Input::new(keys, !wish.spec.terminal));
    let raw = match wish.spec.terminal && wish.spec.stdin && term::stdin_is_terminal() {
        true => Some(Raw::enter().map_err(|error| Fail::new(format!("cannot use the terminal: {error}")))?),
        false => None,
    };
    let other = Other::Exec(exec);
    let outcome = Talk { input, sized, out: Out::new(false), signals }.run(&other, &mut events).await;
    drop(raw);
    let Other::Exec(exec) = other else { return Ok(OURS) };
    match outcome? {
        Outcome::Left | Outcome::Enough => Ok(OK),
        Outcome::Signal(number) => Ok(talk::signal_status(number)),
        Outcome::Lost => Err(lost(&target, exec.id)),
        Outcome::End(_) => verdict(&exec.wait().await.map_err(|error| target.fail(&error))?),
    }
}

fn lost(target: &Target, id: u32) -> Fail {
    Fail::new(format!("{}: the connection ended before exec {id} did", target.name()))
}

/// Starts it. A monitor that cannot says what the runtime said, and that tells which status callers expect.
async fn start(
    client: &Client,
    spec: &ExecSpec,
    output: Option<conmon_proto::Output>,
) -> Result<conmon_proto::Exec, Fail> {
    client.exec(spec, output).await.map_err(|error| {
        let status = error.refusal().map_or(OURS, |refusal| never_started(&refusal.text));
        let text = error.refusal().map_or(error.to_string(), |refusal| reason(&refusal.text));
        Fail::new(text).with_status(status).exactly()
    })
}

/// Leaves it to itself and says its number.
async fn leave(line: &Line, client: &Client, target: &Target, spec: &ExecSpec) -> Done {
    let exec = start(client, spec, None).await?;
    if line.json {
        return print_json(&json!({ "container": target.label, "id": exec.id }));
    }
    print(&format!("{}\n", exec.id))?;
    Ok(OK)
}

/// Waits for it and prints everything at once.
async fn capture(client: &Client, target: &Target, spec: &ExecSpec) -> Done {
    let exec = start(client, spec, None).await?;
    let result = exec.wait().await.map_err(|error| target.fail(&error))?;
    print_json(&json::exec_result(&result))?;
    Ok(status_of(&result))
}

/// The exit status of an exec; what kept it from starting is said.
fn verdict(result: &ExecResult) -> Done {
    let (status, exit) = (status_of(result), &result.exit);
    match exit.reason {
        ExitReason::NeverStarted => Err(Fail::new(reason(&result.error)).with_status(status).exactly()),
        ExitReason::TimedOut => Err(Fail::new("the time was up").with_status(status).exactly()),
        ExitReason::Unknown | ExitReason::Unrecognised => {
            Err(Fail::new("how the process ended is not known").with_status(status).exactly())
        }
        ExitReason::Exited | ExitReason::Signalled => Ok(status),
    }
}

fn status_of(result: &ExecResult) -> u8 {
    match result.exit.reason {
        ExitReason::NeverStarted => never_started(&result.error),
        _ => status(&result.exit),
    }
}

/// The status for a command that could not be run, by what the runtime said: 127 if there is no such command, 126 if it
/// cannot be executed.
fn never_started(text: &str) -> u8 {
    let text = text.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["permission denied", "is a directory", "exec format error"]) {
        126
    } else if says(&["executable file not found", "no such file or directory"]) {
        127
    } else {
        OURS
    }
}

/// What a runtime said, for people: of its last log record that is an error only the message, whether it writes records
/// as `time=... level=error msg="..."` or as JSON; anything else as it is.
fn reason(text: &str) -> String {
    let last = text.lines().rev().find_map(message);
    let text = last.unwrap_or_else(|| text.trim_end().to_owned());
    text.lines().map(show::plain).collect::<Vec<_>>().join("\n")
}

fn message(line: &str) -> Option<String> {
    if let Ok(record) = serde_json::from_str::<serde_json::Value>(line) {
        return record["msg"].as_str().map(str::to_owned);
    }
    let (_, message) = line.strip_prefix("time=")?.split_once(" msg=")?;
    // Quoted the way of Go, of which JSON knows all that occurs here.
    Some(serde_json::from_str(message).unwrap_or_else(|_| message.to_owned()))
}

/// How an exec that was left to itself ended.
pub async fn result(mut line: Line) -> Done {
    let (container, [number]) = target::words(&mut line, ["NUMBER"])?;
    let id = number.parse().map_err(|_| line.mistake(format!("'{number}' is no number of an exec")))?;
    let (client, target) = target::client(&line, container.as_deref()).await?;
    let result = target.call(client.exec_result(id)).await?;
    if line.json {
        return print_json(&json::exec_result(&result));
    }
    print(&ended(&result.exit))?;
    if !result.error.is_empty() {
        print(&format!("error: {}\n", reason(&result.error)))?;
    }
    for (flag, text) in [
        (result.truncated, "truncated: there was more output\n"),
        (result.held, "held: somebody still has its output\n"),
    ] {
        if flag {
            print(text)?;
        }
    }
    Out::new(false).captured(&result.stdout, &result.stderr).await?;
    Ok(OK)
}

fn ended(exit: &Exit) -> String {
    let how = match exit.reason {
        ExitReason::Exited => format!("exited with {}", exit.exit_code),
        ExitReason::Signalled => format!("ended by signal {}", exit.signal),
        ExitReason::TimedOut => "the time was up".to_owned(),
        ExitReason::NeverStarted => "never started".to_owned(),
        ExitReason::Unknown | ExitReason::Unrecognised => "unknown".to_owned(),
    };
    if exit.reason == ExitReason::NeverStarted {
        return format!("{how}\n");
    }
    format!("{how}, {} after {}\n", show::time(exit.finished_at), show::age(exit.started_at, exit.finished_at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_says_why_a_command_cannot_run() {
        let cases = [
            ("exec: \"nope\": executable file not found in $PATH", 127),
            ("open executable: No such file or directory", 127),
            ("exec: \"/etc\": is a directory: permission denied", 126),
            ("exec /x: exec format error", 126),
            ("cannot join cgroup", 125),
            ("", 125),
        ];
        for (text, status) in cases {
            assert_eq!(never_started(text), status, "{text}");
        }
        assert_eq!(
            reason("time=\"2026-01-01T00:00:00Z\" level=error msg=\"exec failed: \\\"x\\\"\"\n"),
            "exec failed: \"x\""
        );
        assert_eq!(
            reason("{\"msg\":\"executable file `x` not found\",\"level\":\"error\"}"),
            "executable file `x` not found"
        );
        assert_eq!(reason("one\ntwo\x1b[2J\n"), "one\ntwo\u{fffd}[2J");
        assert_eq!(capability("net_admin"), "CAP_NET_ADMIN");
        assert_eq!(capability("CAP_KILL"), "CAP_KILL");
    }
}
