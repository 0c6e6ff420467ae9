//! The parts of the podman suite and its list of cases.

mod attach;
mod bed;
mod call;
mod ctl;
mod exec;
pub mod inside;
mod life;
mod logs;
mod monitor;
mod notify;
mod output;
mod pods;
mod processes;
mod rig;
mod run;
pub mod runner;
mod terminal;
mod tty;

use bed::Bed;

/// How a case went.
pub type Verdict<T = ()> = Result<T, Stop>;

/// Why a case ended early.
#[derive(Debug)]
pub enum Stop {
    /// Something is wrong; the text says what was expected and what was seen.
    Failed(String),
    /// This machine lacks what the case needs.
    Skipped(String),
}

/// One case: a name by which it is chosen, and what it does with a podman of its own.
pub struct Case {
    pub name: &'static str,
    pub run: fn(&Bed) -> Verdict,
}

/// Ends the case with an explanation unless the condition holds.
macro_rules! check {
    ($condition:expr, $($why:tt)+) => {
        if !$condition {
            return Err($crate::suite::Stop::Failed(format!($($why)+)));
        }
    };
}
use check;

macro_rules! cases {
    ($($room:ident: $($name:ident)+;)+) => {
        &[$($(Case { name: concat!(stringify!($room), "_", stringify!($name)), run: $room::$name },)+)+]
    };
}

/// Slow cases first, so that the last worker does not end long after the others.
pub const CASES: &[Case] = cases! {
    monitor: killed;
    life: twenty_at_once timeout stop_impatient;
    pods: pod play_kube;
    run: output_and_codes signalled piped_both_ways piped_digest large_output detached removed init start_attached
         signals_are_proxied runtime_refuses preserved_descriptors user_reopens_stdout;
    terminal: typing resizing interrupt large_output detach_and_attach_again own_detach_keys exec_typing exec_detach;
    attach: follows no_stdin no_stdin_piped two_clients piped_stdin refused_after_the_end stopped_client;
    exec: codes detached piped_megabytes streams_stay_apart ten_at_once ends_with_the_container preserved_descriptors health_check leftover_holds_stdout;
    life: wait_for_many stop_polite kill restart restart_policy;
    logs: k8s_file json_file none passthrough journald follow tail_and_stamps max_size partial_and_long binary;
    ctl: attach_and_detach attach_without_stdin attached_over_the_end attached_over_an_upgrade killed_in_a_terminal
         exec_in_a_terminal exec_codes listed followed_over_an_upgrade waited_for;
    notify: by_monitor by_container socket_activation;
    monitor: is_shown out_of_memory checkpoint;
};
