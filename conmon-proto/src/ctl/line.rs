//! The command line: a command, options that all commands have, and what is left for the command.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::str::FromStr;

use lexopt::Arg;

use crate::fail::{Done, Fail, OK};
use crate::{help, show};

/// The words of one command.
pub struct Line {
    pub command: &'static str,
    pub json: bool,
    pub socket: Option<PathBuf>,
    parser: lexopt::Parser,
    /// The option that was read last, as it is named in messages.
    option: String,
}

/// The next thing on a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// With its dashes.
    Option(String),
    Word(OsString),
}

impl Line {
    /// Reads up to and with the command.
    pub fn read(words: impl Iterator<Item = OsString>) -> Result<Line, Fail> {
        let mut line = Line {
            command: "",
            json: false,
            socket: None,
            parser: lexopt::Parser::from_args(words.collect::<Vec<_>>()),
            option: String::new(),
        };
        match line.next()? {
            None => Err(Fail::usage("which command? conwardctl --help shows them")),
            Some(Item::Option(option)) if option == "--version" => Err(line.say(&help::version())),
            Some(Item::Option(option)) => Err(line.unknown(&option)),
            Some(Item::Word(word)) if word == "help" => Err(line.help()),
            Some(Item::Word(word)) => {
                let known = help::COMMANDS.iter().find(|command| word == **command);
                line.command = known.ok_or_else(|| {
                    Fail::usage(format!("no command '{}'; conwardctl --help shows them", word.to_string_lossy()))
                })?;
                Ok(line)
            }
        }
    }

    /// The next option or word that is not for all commands.
    pub fn next(&mut self) -> Result<Option<Item>, Fail> {
        loop {
            let option = match self.parser.next() {
                Ok(None) => return Ok(None),
                Ok(Some(Arg::Value(word))) => return Ok(Some(Item::Word(word))),
                Ok(Some(Arg::Long(name))) => format!("--{name}"),
                Ok(Some(Arg::Short(letter))) => format!("-{letter}"),
                Err(error) => return Err(self.mistake(error)),
            };
            self.option.clone_from(&option);
            match &option[..] {
                "--json" => self.json = true,
                "--socket" => self.socket = Some(self.value()?.into()),
                "-h" | "--help" => return Err(self.help()),
                _ => return Ok(Some(Item::Option(option))),
            }
        }
    }

    /// The value of the option that was read last.
    pub fn value(&mut self) -> Result<OsString, Fail> {
        self.parser.value().map_err(|error| self.mistake(error))
    }

    /// A value that must be UTF-8.
    pub fn text(&mut self) -> Result<String, Fail> {
        let value = self.value()?;
        value.into_string().map_err(|value| self.mistake(format!("{} is not UTF-8: {value:?}", self.option)))
    }

    pub fn number<T: FromStr>(&mut self) -> Result<T, Fail> {
        let text = self.text()?;
        text.parse().map_err(|_| self.mistake(format!("{} takes a number, not '{text}'", self.option)))
    }

    /// A number of bytes: `500`, `64K`, `10M`, `1G`.
    pub fn size(&mut self) -> Result<u64, Fail> {
        let text = self.text()?;
        show::size(&text).ok_or_else(|| self.mistake(format!("{} takes a number of bytes, not '{text}'", self.option)))
    }

    /// All that is left, whatever it looks like.
    pub fn rest(&mut self) -> Result<Vec<String>, Fail> {
        let rest: Result<Vec<OsString>, lexopt::Error> = self.parser.raw_args().map(Iterator::collect);
        rest.map_err(|error| self.mistake(error))?.into_iter().map(|word| self.utf8(word)).collect()
    }

    pub fn utf8(&self, word: OsString) -> Result<String, Fail> {
        word.into_string().map_err(|word| self.mistake(format!("not UTF-8: {word:?}")))
    }

    pub fn exactly<const N: usize>(&self, words: Vec<String>, names: [&str; N]) -> Result<[String; N], Fail> {
        if let Some(missing) = names.get(words.len()) {
            return Err(self.mistake(format!("{missing} is missing")));
        }
        words.try_into().map_err(|words: Vec<String>| self.mistake(format!("'{}' is one word too many", words[N])))
    }

    pub fn unknown(&self, option: &str) -> Fail {
        self.mistake(format!("no option '{option}'"))
    }

    pub fn mistake(&self, text: impl std::fmt::Display) -> Fail {
        let command = if self.command.is_empty() { String::new() } else { format!("{}: ", self.command) };
        let again = ["conwardctl", self.command, "--help"].into_iter().filter(|word| !word.is_empty());
        let again = again.collect::<Vec<_>>().join(" ");
        let fail = Fail::usage(format!("{command}{text}; see {again}"));
        if matches!(self.command, "attach" | "exec") { fail.ours() } else { fail }
    }

    fn help(&self) -> Fail {
        self.say(&help::of(self.command))
    }

    /// Prints, and that was it.
    fn say(&self, text: &str) -> Fail {
        match print(text) {
            Ok(()) => Fail::quiet(OK),
            Err(fail) => fail,
        }
    }
}

/// Writes to standard output.
pub fn print(text: &str) -> Result<(), Fail> {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    Ok(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())?)
}

/// Prints a value for programs.
pub fn print_json(value: &serde_json::Value) -> Done {
    print(&format!("{value:#}\n"))?;
    Ok(OK)
}

/// Whether a word looks like a path, and not like the name of a container.
pub fn is_path(word: &OsStr) -> bool {
    word.as_encoded_bytes().contains(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> Result<Line, Fail> {
        Line::read(words.iter().map(OsString::from))
    }

    #[test]
    fn common_options_stand_anywhere() {
        let mut line = line(&["--json", "ps", "--all", "--socket", "/x", "word"]).unwrap();
        assert_eq!(line.next().unwrap(), Some(Item::Option("--all".to_owned())));
        assert_eq!(line.next().unwrap(), Some(Item::Word("word".into())));
        assert_eq!(line.next().unwrap(), None);
        assert!(line.json);
        assert_eq!(line.socket, Some("/x".into()));
    }

    #[test]
    fn mistakes_name_the_command_and_where_help_is() {
        let fail = line(&["sing"]).err().unwrap();
        assert_eq!((fail.status, fail.text()), (2, "no command 'sing'; conwardctl --help shows them"));
        let wait = line(&["wait", "a", "b"]).unwrap();
        let words = vec!["a".to_owned(), "b".to_owned()];
        let fail = wait.exactly(words, ["CONTAINER"]).unwrap_err();
        assert_eq!(fail.text(), "wait: 'b' is one word too many; see conwardctl wait --help");
        let mut exec = line(&["exec", "--timeout"]).unwrap();
        exec.next().unwrap();
        assert_eq!(exec.number::<u64>().unwrap_err().status, 125);
    }
}
