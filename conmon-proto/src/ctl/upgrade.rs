//! `upgrade`: a new program under running containers.

use std::time::Duration;

use conmon_proto::{Client, Version};
use serde_json::{Value, json};

use crate::fail::{Done, Fail, OK};
use crate::find;
use crate::line::{Item, Line, print, print_json};
use crate::show::short;
use crate::target::{self, Target};

struct Wish {
    all: bool,
    check: bool,
    container: Option<String>,
    program: Option<String>,
}

pub async fn run(mut line: Line) -> Done {
    let wish = read(&mut line)?;
    let targets = targets(&line, &wish).await?;
    let mut tally = Tally::default();
    for target in targets {
        let (label, result) = match target {
            Ok(target) => (target.label.clone(), upgrade(&target, &wish).await),
            // A plain conmon among them is no failure of ours.
            Err((label, text)) => {
                tally.skipped += 1;
                tally.tell(&line, &label, "skipped", &text)?;
                continue;
            }
        };
        match result {
            Ok(text) => {
                tally.done += 1;
                tally.tell(&line, &label, if wish.check { "accepted" } else { "upgraded" }, &text)?;
            }
            Err(fail) => {
                tally.failed += 1;
                tally.tell(&line, &label, "failed", fail.text())?;
            }
        }
    }
    tally.end(&line, &wish)
}

fn read(line: &mut Line) -> Result<Wish, Fail> {
    let (mut words, mut all, mut check) = (Vec::new(), false, false);
    while let Some(item) = line.next()? {
        match item {
            Item::Word(word) => words.push(line.utf8(word)?),
            Item::Option(option) => match &option[..] {
                "--all" => all = true,
                "--check" => check = true,
                _ => return Err(line.unknown(&option)),
            },
        }
    }
    let container = if all { None } else { target::container(line, &mut words)? };
    let program = if words.is_empty() { None } else { Some(words.remove(0)) };
    line.exactly(words, [])?;
    // The monitor's working directory is another.
    let program = program.map(|program| absolute(&program)).transpose()?;
    Ok(Wish { all, check, container, program })
}

fn absolute(program: &str) -> Result<String, Fail> {
    let path = std::path::absolute(program).map_err(|error| Fail::new(format!("cannot find {program}: {error}")))?;
    if !path.is_file() {
        return Err(Fail::new(format!("{} is no program", path.display())));
    }
    path.into_os_string().into_string().map_err(|path| Fail::new(format!("not UTF-8: {path:?}")))
}

/// Whom to upgrade, and who cannot be.
type Candidate = Result<Target, (String, String)>;

async fn targets(line: &Line, wish: &Wish) -> Result<Vec<Candidate>, Fail> {
    if !wish.all {
        return Ok(vec![Ok(target::target(line, wish.container.as_deref()).await?)]);
    }
    let monitors: Vec<_> = find::monitors().into_iter().filter(|monitor| !monitor.exec).collect();
    let answers = find::ask_all(&monitors).await;
    let candidate = |(monitor, answer): (&find::Monitor, find::Answer)| match answer {
        find::Answer::Absent => Err((monitor.id.clone(), "a plain conmon, which has no service".to_owned())),
        _ => Target::of(monitor).map_err(|fail| (monitor.id.clone(), fail.text().to_owned())),
    };
    Ok(monitors.iter().zip(answers).map(candidate).collect())
}

/// Upgrades one monitor, and looks whether the new program answers. Says from what to what.
async fn upgrade(target: &Target, wish: &Wish) -> Result<String, Fail> {
    let client = target.connect().await?;
    let before = target.call(client.version()).await?;
    match target.call(client.upgrade(wish.program.as_deref(), wish.check)).await {
        Ok(()) if wish.check => return Ok(format!("conward {}, pid {}", before.conward, before.pid)),
        Ok(()) => {}
        // Whose answer it is stands before it.
        Err(fail) => return Err(Fail::new(fail.text().trim_start_matches(&format!("{}: ", target.name())))),
    }
    drop(client);
    let after = replaced(target, &before).await?;
    Ok(format!("conward {} to {}, pid {}", before.conward, after.conward, after.pid))
}

/// The version of the new program, which shows itself by the time of its start.
async fn replaced(target: &Target, before: &Version) -> Result<Version, Fail> {
    const STEP: Duration = Duration::from_millis(50);
    for _ in 0..100 {
        if let Some(client) = target.again().await
            && let Some(after) = version(&client).await
            && after.started_at != before.started_at
        {
            return Ok(after);
        }
        tokio::time::sleep(STEP).await;
    }
    Err(Fail::new(format!("{}: accepted, but the new program does not show itself", target.name())))
}

async fn version(client: &Client) -> Option<Version> {
    tokio::time::timeout(find::PATIENCE, client.version()).await.ok()?.ok()
}

#[derive(Default)]
struct Tally {
    done: usize,
    failed: usize,
    skipped: usize,
    results: Vec<Value>,
}

impl Tally {
    fn tell(&mut self, line: &Line, label: &str, result: &str, text: &str) -> Result<(), Fail> {
        self.results.push(json!({ "container": label, "result": result, "text": text }));
        if line.json {
            return Ok(());
        }
        print(&format!(
            "{:<12}  {result:<8}  {text}\n",
            if label.contains('/') { label.to_owned() } else { short(label) }
        ))
    }

    fn end(self, line: &Line, wish: &Wish) -> Done {
        if line.json {
            print_json(&Value::Array(self.results))?;
        } else if wish.all {
            let done = if wish.check { "accepted" } else { "upgraded" };
            print(&format!("{} {done}, {} failed, {} skipped\n", self.done, self.failed, self.skipped))?;
        }
        match self.failed {
            0 => Ok(OK),
            _ => Err(Fail::quiet(1)),
        }
    }
}
