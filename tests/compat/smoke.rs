use crate::support::pipes::Kind;
use crate::support::scene::Scene;
use crate::support::suite::{Case, Monitor};
use crate::support::{Outcome, same};

pub fn cases() -> Vec<Case> {
    vec![Case::new("smoke/create", "3", "x", create), Case::new("smoke/tty", "4", "x", tty)]
}

fn create(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.script("echo hi; echo oops >&2; exit 3")?.sync_pipe(Kind::Seqpacket)?.exit_command(&[]);
    let mut live = scene.start()?;
    same("report", live.sync()?.report()?, format!("{{\"pid\": {}}}\n", live.container()?))?;
    same("status", live.end()?, 3)?;
    same("exit", live.exit_file()?, "3".to_owned())?;
    live.after()?;
    same("log", live.plain_log()?, vec!["stdout F hi".to_owned(), "stderr F oops".to_owned()])
}

fn tty(monitor: &Monitor) -> Outcome {
    let mut scene = Scene::create(monitor)?;
    scene.script("stty size; read x; echo got $x; exit 4")?.flag("-t");
    let live = scene.start()?;
    live.log_has("0 0")?;
    let client = live.attach()?;
    client.send(b"abc\n")?;
    client.expect("got abc\r\n")?;
    same("status", live.end()?, 4)
}
