//! The parts of the benchmark, and the process that measures.

pub mod client;
pub mod container;
pub mod flow;
pub mod latency;
pub mod measures;
pub mod options;
pub mod payload;
pub mod processes;
pub mod runtime;
pub mod service;
pub mod standing;
pub mod supervisor;
pub mod table;

use std::{
    collections::BTreeSet,
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use nix::sys::{
    prctl::{set_child_subreaper, set_pdeathsig},
    signal::{SigSet, Signal},
};

use container::{Container, Monitor, Outcome, Plan};
use measures::MEASURES;
use options::Options;
use payload::Dice;
use runtime::Role;
use table::{Pair, Row};

/// The word by which the supervisor starts the process that measures.
pub const WORKER: &str = "worker";

/// `worker SCRATCH WORD…`
pub fn work(words: &[String]) -> ExitCode {
    match words
        .split_first()
        .ok_or("no scratch directory".to_string())
        .and_then(|(scratch, words)| measure(scratch, words))
    {
        Ok(code) => code,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn measure(scratch: &str, words: &[String]) -> Outcome<ExitCode> {
    let options = Options::parse(words)?;
    prepare().map_err(|error| format!("cannot set up this process: {error}"))?;
    let mut bench = Bench::new(Path::new(scratch), options)?;
    let machine = bench.machine();
    let mut rows = Vec::new();
    for measure in MEASURES {
        if !bench.wants(measure.name) {
            continue;
        }
        let began = Instant::now();
        rows.extend((measure.run)(&mut bench));
        eprintln!("\r{:<10} {:>5.1} s {:<30}", measure.name, began.elapsed().as_secs_f64(), "");
    }
    println!("{}", table::markdown(&rows));
    machine.iter().for_each(|(key, value)| println!("- {key}: {value}"));
    bench.remarks.iter().for_each(|remark| println!("- remark: {remark}"));
    if let Some(file) = &bench.options.json {
        let remarks: Vec<String> = bench.remarks.iter().cloned().collect();
        let text = format!("{:#}\n", table::json(&rows, &machine, &remarks));
        fs::write(file, text).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    }
    Ok(if bench.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn prepare() -> io::Result<()> {
    SigSet::all().thread_unblock()?;
    // Nothing is measured for nobody.
    set_pdeathsig(Signal::SIGTERM)?;
    // Monitors go to the background; as our children they can be waited for and accounted for.
    set_child_subreaper(true)?;
    Ok(())
}

#[derive(Debug)]
pub struct Bench {
    work: PathBuf,
    /// conmon, conward.
    monitors: [Monitor; 2],
    pub options: Options,
    dice: Dice,
    pub remarks: BTreeSet<String>,
    /// Something of conward's went wrong.
    failed: bool,
}

impl Bench {
    fn new(work: &Path, options: Options) -> Outcome<Bench> {
        let conmon = env::var_os("CONMON").map_or_else(|| in_path("conmon"), |path| Ok(PathBuf::from(path)))?;
        let conward =
            env::var_os("CONWARD").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_conward")), PathBuf::from);
        let monitors = [Monitor { name: "conmon", path: conmon }, Monitor { name: "conward", path: conward }];
        let seed = runtime::now() | 1;
        Ok(Bench { work: work.into(), monitors, options, dice: Dice(seed), remarks: BTreeSet::new(), failed: false })
    }

    fn wants(&self, name: &str) -> bool {
        self.options.only.is_empty() || self.options.only.iter().any(|wanted| wanted == name)
    }

    /// The size to use: `quick` with `--quick`, otherwise `full`.
    pub fn size<T>(&self, quick: T, full: T) -> T {
        if self.options.quick { quick } else { full }
    }

    /// How many rounds: what was asked for, otherwise as in [`Bench::size`].
    pub fn rounds(&self, quick: usize, full: usize) -> usize {
        self.options.rounds.unwrap_or(self.size(quick, full))
    }

    /// Lets both do `one` in each round, in random order. A failure leaves a hole and a remark.
    pub fn compare<T>(
        &mut self,
        what: &str,
        rounds: usize,
        one: impl Fn(&Subject) -> Outcome<T>,
    ) -> Vec<[Option<T>; 2]> {
        let mut results = Vec::new();
        for round in 1..=rounds {
            eprint!("\r{what:<40} {round:>3}/{rounds}");
            let first = self.dice.below(2);
            let mut pair = [None, None];
            for side in [first, 1 - first] {
                let mut subject = Subject { work: &self.work, monitor: &self.monitors[side], flaws: Vec::new().into() };
                match one(&subject) {
                    Ok(result) => pair[side] = Some(result),
                    Err(why) => subject.flaws.get_mut().push(why),
                }
                for flaw in subject.flaws.into_inner() {
                    self.remarks.insert(format!("{what}: {}: {flaw}", self.monitors[side].name));
                    self.failed |= side == 1;
                }
            }
            results.push(pair);
        }
        results
    }

    fn machine(&self) -> Vec<(&'static str, String)> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cores = thread::available_parallelism().map_or(0, usize::from);
        let date = Command::new("date").args(["-u", "+%F"]).output();
        let mode = [(self.options.quick, "--quick"), (self.options.realtime, "--realtime")];
        let mode: Vec<&str> = mode.iter().filter(|(on, _)| *on).map(|(_, word)| *word).collect();
        let mut machine = vec![
            ("date", date.map_or_else(|_| "?".into(), |out| String::from_utf8_lossy(&out.stdout).trim().to_string())),
            ("cpu", format!("{}, {cores} cores", model.map_or("?", |(_, name)| name))),
            ("kernel", read("/proc/sys/kernel/osrelease").trim().to_string()),
            ("load before", read("/proc/loadavg").split(' ').next().unwrap_or("?").to_string()),
        ];
        machine.extend(self.monitors.iter().map(|monitor| (monitor.name, monitor.version())));
        if !mode.is_empty() {
            machine.push(("mode", mode.join(" ")));
        }
        machine
    }
}

/// The monitor whose turn it is.
pub struct Subject<'a> {
    pub work: &'a Path,
    pub monitor: &'a Monitor,
    /// What is wrong with results that are there all the same.
    flaws: std::cell::RefCell<Vec<String>>,
}

impl Subject<'_> {
    pub fn start(&self, role: &Role, plan: Plan) -> Outcome<Container> {
        Container::start(self.work, self.monitor, role, plan)
    }

    pub fn flaw(&self, why: impl Into<String>) {
        self.flaws.borrow_mut().push(why.into());
    }

    /// True for the one that conward is compared with.
    pub fn is_conmon(&self) -> bool {
        self.monitor.name == "conmon"
    }
}

impl Monitor {
    /// What it says it is, and the size of its file.
    fn version(&self) -> String {
        let said = Command::new(&self.path).arg("--version").output();
        let said = said.map_or_else(|error| error.to_string(), |out| String::from_utf8_lossy(&out.stdout).into_owned());
        let own = said.lines().find(|line| line.starts_with("conward ")).or(said.lines().next()).unwrap_or("?");
        let size = fs::metadata(&self.path).map_or(0, |file| file.len() / 1024);
        format!("{own}, {size} KiB")
    }
}

/// Picks one number out of each result.
pub fn pairs<T>(results: &[[Option<T>; 2]], number: impl Fn(&T) -> Option<f64>) -> Vec<Pair> {
    results.iter().map(|pair| [0, 1].map(|side| pair[side].as_ref().and_then(&number))).collect()
}

/// A row of one number of each result.
pub fn row<T>(
    title: &str,
    unit: &'static str,
    digits: usize,
    results: &[[Option<T>; 2]],
    number: impl Fn(&T) -> f64,
) -> Row {
    Row::new(title, unit, digits, pairs(results, |result| Some(number(result))))
}

pub fn milliseconds(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64() * 1e3
}

fn in_path(name: &str) -> Outcome<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.ok_or(format!("{name} is not installed (tools/setup bench installs it), and CONMON does not name it"))
}
