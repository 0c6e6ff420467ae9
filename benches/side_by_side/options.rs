//! The words behind `cargo bench --bench side_by_side --`.

use std::path::PathBuf;

use super::measures::MEASURES;

#[derive(Clone, Debug, Default)]
pub struct Options {
    pub quick: bool,
    pub realtime: bool,
    pub list: bool,
    pub help: bool,
    /// Empty means all.
    pub only: Vec<String>,
    pub rounds: Option<usize>,
    pub json: Option<PathBuf>,
}

pub const USAGE: &str = "\
usage: side_by_side [--quick] [--only LIST] [--rounds N] [--realtime] [--json FILE] [--list]
  --quick      small sizes and few rounds, under a minute
  --only LIST  some of the measurements, with commas between
  --rounds N   rounds of every measurement
  --realtime   everything in the real-time class, against the noise of other work (root, chrt)
  --json FILE  every single value
  --list       names of the measurements
environment: CONMON and CONWARD name the two programs";

impl Options {
    pub fn parse(words: &[String]) -> Result<Options, String> {
        let mut options = Options::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} wants a value"));
            match word.as_str() {
                "--quick" => options.quick = true,
                "--realtime" => options.realtime = true,
                "--list" => options.list = true,
                "--help" | "-h" => options.help = true,
                "--only" => options.only = value()?.split(',').map(str::to_string).collect(),
                "--rounds" => options.rounds = Some(positive(value()?)?),
                "--json" => options.json = Some(PathBuf::from(value()?)),
                // cargo says so to every benchmark.
                "--bench" => {}
                _ => return Err(format!("unknown word {word}")),
            }
        }
        match options.only.iter().find(|name| MEASURES.iter().all(|measure| measure.name != **name)) {
            Some(name) => Err(format!("no measurement {name}; see --list")),
            None => Ok(options),
        }
    }
}

fn positive(word: &str) -> Result<usize, String> {
    word.parse().ok().filter(|number| *number > 0).ok_or(format!("{word} is not a positive number"))
}
