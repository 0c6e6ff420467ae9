//! `conwardctl`: looks at, talks to and steers monitors.
//!
//! A file per verb, and what they share: `line` reads options, `find` looks for monitors, `target` picks one, `talk`
//! carries bytes between a terminal and a container, `term` and `stdio` know terminals and descriptors, `show` and
//! `json` say things to people and to programs.

mod attach;
mod calls;
mod exec;
mod fail;
mod find;
mod help;
mod inspect;
mod json;
mod keys;
mod line;
mod logs;
mod policy;
mod ps;
mod show;
mod stdio;
mod sys;
mod talk;
mod target;
mod term;
mod top;
mod upgrade;

use std::process::ExitCode;

use fail::{Done, Fail};
use line::Line;

fn main() -> ExitCode {
    term::restore_on_panic();
    let result = Line::read(std::env::args_os().skip(1)).and_then(run);
    result.unwrap_or_else(Fail::tell).into()
}

fn run(line: Line) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Fail::new(format!("cannot set up the event loop: {error}")))?;
    tokio::task::LocalSet::new().block_on(&runtime, command(line))
}

async fn command(line: Line) -> Done {
    match line.command {
        "attach" => attach::run(line).await,
        "close-stdin" => calls::close_stdin(line).await,
        "exec" => exec::run(line).await,
        "exec-result" => exec::result(line).await,
        "inspect" => inspect::run(line).await,
        "log-policy" => policy::run(line).await,
        "logs" => logs::run(line).await,
        "ps" => ps::run(line).await,
        "reopen-log" => calls::reopen_log(line).await,
        "resize" => calls::resize(line).await,
        "signal" => calls::signal(line).await,
        "top" => top::run(line).await,
        "upgrade" => upgrade::run(line).await,
        "version" => calls::version(line).await,
        "wait" => calls::wait(line).await,
        // `Line::read` knows the same names.
        other => Err(Fail::usage(format!("no command '{other}'"))),
    }
}
