//! The table: every case is run against every monitor, each in a process of its own.
//!
//! A process per case gives each its own descriptors, working directory, mount namespace and orphans, and a case that
//! hangs can be ended from outside.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{Fail, Outcome, procs};

/// The most that one case may take, and with `SOAK=1`.
const CASE_LIMIT: Duration = Duration::from_secs(60);
const SOAK_LIMIT: Duration = Duration::from_secs(1800);
/// How many cases run at once.
const WORKERS: usize = 4;

/// Which program a column of the table is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Column {
    Conmon,
    Conward,
}

/// The program under test.
#[derive(Debug)]
pub struct Monitor {
    pub program: PathBuf,
    pub column: Column,
    /// Scratch of this case.
    dir: PathBuf,
    scenes: Cell<u32>,
}

impl Monitor {
    /// A new directory with a short name; socket paths are at most 107 bytes.
    pub fn fresh_dir(&self) -> Outcome<PathBuf> {
        let dir = self.dir.join(self.scenes.get().to_string());
        self.scenes.set(self.scenes.get() + 1);
        fs::create_dir(&dir)?;
        Ok(dir)
    }
}

type Run = Box<dyn Fn(&Monitor) -> Outcome + Sync>;

/// One row of the table.
pub struct Case {
    pub id: String,
    /// Where the contract says so.
    pub clause: &'static str,
    pub what: String,
    run: Run,
    known_defect: Option<&'static str>,
    /// The defect shows only when events come in a certain order.
    at_times: bool,
    since: Option<&'static str>,
    native: bool,
}

impl Case {
    pub fn new(id: &str, clause: &'static str, what: &str, run: impl Fn(&Monitor) -> Outcome + Sync + 'static) -> Case {
        let run = Box::new(run);
        Case {
            id: id.to_owned(),
            clause,
            what: what.to_owned(),
            run,
            known_defect: None,
            at_times: false,
            since: None,
            native: false,
        }
    }

    /// conmon is known to be wrong here; the number is that of the contract's list of defects.
    pub fn defect(mut self, number: &'static str) -> Case {
        self.known_defect = Some(number);
        self
    }

    /// As [`Case::defect`], but conmon passes when it is lucky.
    pub fn defect_at_times(mut self, number: &'static str) -> Case {
        self.at_times = true;
        self.defect(number)
    }

    /// The first conmon that does this.
    pub fn since(mut self, version: &'static str) -> Case {
        self.since = Some(version);
        self
    }

    /// Something that only conward offers.
    pub fn native(mut self) -> Case {
        self.native = true;
        self
    }
}

/// What a cell of the table says.
#[derive(Clone, Debug, PartialEq)]
enum Mark {
    Pass,
    Fail(String),
    Skip(String),
    /// Not asked, and why.
    Absent(String),
}

/// The arguments: `[FILTER…] [--list] [--only conmon|conward]`, and `--one COLUMN ID`, which a run uses for itself.
pub fn main(cases: &[Case]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let ["--one", column, id] = args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return one(cases, column, id);
    }
    let mut words = args.iter();
    let (mut filters, mut only, mut list) = (Vec::new(), None, false);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--list" => list = true,
            "--only" => only = words.next().cloned(),
            // What libtest understands and callers of `cargo test` may pass on.
            word if word.starts_with("--") => {}
            word => filters.push(word.to_owned()),
        }
    }
    let chosen: Vec<&Case> = cases
        .iter()
        .filter(|case| filters.is_empty() || filters.iter().any(|f| case.id.contains(f) || case.clause.contains(f)))
        .collect();
    match list {
        true => show_list(&chosen),
        false => run_all(&chosen, only.as_deref()),
    }
}

fn show_list(cases: &[&Case]) -> ExitCode {
    for case in cases {
        say(&format!("{:<44} {:<8} {}", case.id, case.clause, case.what));
    }
    ExitCode::SUCCESS
}

// ---------------------------------------------------------------- one case, in a process of its own

const SKIPPED: u8 = 77;

/// Names the directory of a case. It is the table's, so that a case that has to be killed leaves nothing on the disk.
const SCRATCH: &str = "CASE_SCRATCH";

fn one(cases: &[Case], column: &str, id: &str) -> ExitCode {
    let Some(case) = cases.iter().find(|case| case.id == id) else { return ExitCode::from(2) };
    let column = if column == "conmon" { Column::Conmon } else { Column::Conward };
    let Some(program) = program(column) else { return ExitCode::from(2) };
    let Some(dir) = std::env::var_os(SCRATCH).map(PathBuf::from) else {
        return tell(&format!("no {SCRATCH}: a case is run by its table"), ExitCode::from(2));
    };
    let monitor = Monitor { program, column, dir, scenes: Cell::new(0) };
    let result = procs::adopt_orphans().and_then(|()| (case.run)(&monitor));
    let told = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Fail::Skip(reason)) => tell(&reason, ExitCode::from(SKIPPED)),
        Err(Fail::Wrong(reason)) => tell(&format!("{reason}{}", evidence(&monitor.dir)), ExitCode::FAILURE),
    };
    procs::end_descendants();
    super::journal::unmount_below(&monitor.dir);
    told
}

fn tell(text: &str, code: ExitCode) -> ExitCode {
    say(text);
    code
}

/// What the monitors of a failed case said, and what they logged.
fn evidence(dir: &Path) -> String {
    let mut text = String::new();
    for scene in fs::read_dir(dir).into_iter().flatten().flatten() {
        for name in ["front.out", "front.err", "log"] {
            let bytes = fs::read(scene.path().join(name)).unwrap_or_default();
            if !bytes.is_empty() {
                let part = &bytes[..bytes.len().min(1500)];
                let shown = String::from_utf8_lossy(part).trim_end().replace('\n', "\n      | ");
                text += &format!("\n    {name} ({} bytes):\n      | {shown}", bytes.len());
            }
        }
    }
    text
}

// ---------------------------------------------------------------- the whole table

struct Row<'a> {
    case: &'a Case,
    cells: [Mark; 2],
}

fn run_all(cases: &[&Case], only: Option<&str>) -> ExitCode {
    if let Err(fail) = procs::adopt_orphans() {
        return tell(&format!("cannot adopt orphans: {fail:?}"), ExitCode::FAILURE);
    }
    let version = program(Column::Conmon).map(|program| version_of(&program));
    let begun = Instant::now();
    let queue: Mutex<VecDeque<(usize, usize)>> =
        Mutex::new((0..cases.len()).flat_map(|row| [(row, 0), (row, 1)]).collect());
    let done: Mutex<Vec<[Option<Mark>; 2]>> = Mutex::new(cases.iter().map(|_| [None, None]).collect());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let Some((row, side)) = queue.lock().expect("no worker panics").pop_front() else { break };
                    let cell = cell(cases[row], side, only, version.as_deref());
                    done.lock().expect("no worker panics")[row][side] = Some(cell);
                }
            });
        }
    });
    procs::end_descendants();
    let cells = done.into_inner().expect("no worker panicked");
    let rows: Vec<Row> = cases
        .iter()
        .zip(cells)
        .map(|(case, cells)| Row { case, cells: cells.map(|cell| cell.unwrap_or(Mark::Absent("not run".to_owned()))) })
        .collect();
    conclude(&rows, version.as_deref(), only, begun.elapsed())
}

fn cell(case: &Case, side: usize, only: Option<&str>, version: Option<&str>) -> Mark {
    let (column, name) = [(Column::Conmon, "conmon"), (Column::Conward, "conward")][side];
    if only.is_some_and(|only| only != name) {
        return Mark::Absent("not asked".to_owned());
    }
    if column == Column::Conmon {
        let Some(version) = version else { return Mark::Absent("no conmon in PATH".to_owned()) };
        if case.native {
            return Mark::Absent("n/a (conward's own)".to_owned());
        }
        if case.since.is_some_and(|since| numbers(version) < numbers(since)) {
            return Mark::Absent(format!("n/a ({version})"));
        }
    }
    let ask = || run_one(case, name).unwrap_or_else(|fail| Mark::Fail(format!("{fail:?}")));
    match ask() {
        // A busy machine shows races of conmon's own, such as over clients that have connected and are not accepted yet.
        Mark::Fail(_) if column == Column::Conmon && case.known_defect.is_none() => ask(),
        mark => mark,
    }
}

fn run_one(case: &Case, name: &str) -> Outcome<Mark> {
    let output = tempfile::tempfile()?;
    let scratch = tempfile::Builder::new().prefix("cw").tempdir()?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--one", name, &case.id])
        .env(SCRATCH, scratch.path())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .process_group(0)
        .spawn()?;
    let limit = if std::env::var_os("SOAK").is_some_and(|value| value == "1") { SOAK_LIMIT } else { CASE_LIMIT };
    let end = Instant::now() + limit;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if Instant::now() > end => {
                procs::end_tree(Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX)));
                killpg(Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX)), Signal::SIGKILL)?;
                child.wait()?;
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let text = read_all(output)?;
    Ok(match status.map(|status| status.code()) {
        None => Mark::Fail(format!("did not end within {} s\n{text}", limit.as_secs())),
        Some(Some(0)) => Mark::Pass,
        Some(Some(code)) if code == i32::from(SKIPPED) => Mark::Skip(text),
        Some(_) => Mark::Fail(text),
    })
}

fn read_all(mut file: fs::File) -> Outcome<String> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// Prints the table and what has to be said about it; the last line is the sum.
fn conclude(rows: &[Row], version: Option<&str>, only: Option<&str>, took: Duration) -> ExitCode {
    let left = version.map_or("conmon".to_owned(), |version| format!("conmon {version}"));
    say(&format!("{:<40} {:<9} {left:<22} {:<8} what", "case", "clause", "conward"));
    for row in rows {
        let [conmon, conward] = &row.cells;
        let cells = (label(conmon, row.case), label(conward, row.case));
        say(&format!("{:<40} {:<9} {:<22} {:<8} {}", row.case.id, row.case.clause, cells.0, cells.1, row.case.what));
    }
    let mut count = [0; 3];
    for row in rows {
        count_row(row, &mut count);
    }
    if version.is_none() && only != Some("conward") {
        say("\nThe column of conmon is empty: no conmon in PATH (or CONMON names none).");
    }
    let known = rows.iter().filter(|row| is_known(row)).count();
    say(&format!(
        "\n{} cases in {} s; {known} known defects of conmon that conward does not have",
        rows.len(),
        took.as_secs()
    ));
    let [passed, failed, skipped] = count;
    say(&format!("\n{passed} passed, {failed} failed, {skipped} skipped"));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn is_known(row: &Row) -> bool {
    row.case.known_defect.is_some() && matches!(row.cells, [Mark::Fail(_), Mark::Pass])
}

/// Counts a row by conward's cell, and explains what is wrong with either.
fn count_row(row: &Row, [passed, failed, skipped]: &mut [u32; 3]) {
    let id = &row.case.id;
    let finding = match (&row.cells[0], row.case.known_defect) {
        (Mark::Fail(why), None) => Some(format!("FINDING {id}: conmon fails, and no defect is known here: {why}")),
        (Mark::Pass, Some(defect)) if !row.case.at_times => {
            Some(format!("FINDING {id}: conmon passes although {defect} is said to be its defect"))
        }
        _ => None,
    };
    match &row.cells[1] {
        Mark::Fail(why) => say(&format!("\nFAILED {id} (§{}): {}\n    {why}", row.case.clause, row.case.what)),
        Mark::Skip(why) => say(&format!("\nskipped {id}: {why}")),
        _ => {}
    }
    if let Some(text) = &finding {
        say(&format!("\n{text}"));
    }
    match (&row.cells[1], finding.is_some()) {
        (Mark::Fail(_), _) | (_, true) => *failed += 1,
        (Mark::Pass, _) => *passed += 1,
        (Mark::Skip(_), _) => *skipped += 1,
        (Mark::Absent(_), _) => {}
    }
}

fn label(cell: &Mark, case: &Case) -> String {
    match (cell, case.known_defect) {
        (Mark::Pass, _) => "pass".to_owned(),
        (Mark::Fail(_), Some(defect)) => format!("fails (known {defect})"),
        (Mark::Fail(_), None) => "FAIL".to_owned(),
        (Mark::Skip(_), _) => "skipped".to_owned(),
        (Mark::Absent(why), _) => why.clone(),
    }
}

// ---------------------------------------------------------------- programs

/// The program of a column: `CONMON` or conmon in PATH; `CONWARD` or what was just built.
pub fn program(column: Column) -> Option<PathBuf> {
    match column {
        Column::Conward => {
            Some(std::env::var_os("CONWARD").map_or(PathBuf::from(env!("CARGO_BIN_EXE_conward")), PathBuf::from))
        }
        Column::Conmon => in_path(&std::env::var_os("CONMON").unwrap_or_else(|| OsString::from("conmon"))),
    }
}

/// Finds a program the way a shell does.
pub fn in_path(name: &OsString) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The third word of `--version`.
fn version_of(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).split_whitespace().nth(2).unwrap_or("?").to_owned()
}

fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

/// A line on stdout; a reader that went away is no reason to stop.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
