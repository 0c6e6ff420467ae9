//! The state of a monitor that is replaced: whatever the bytes are, they are refused or taken over whole, the same each
//! time, and no descriptor is left behind.
#![no_main]

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use conward::monitor::saved::Saved;
use conward::options::{self, Options, Parsed};
use conward::upgrade::state::{self, StateError, Taken};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let before = next_descriptor();
    let (first, second) = (parse(data), parse(data));
    match (&first, &second) {
        (Ok(first), Ok(second)) => {
            assert_eq!(first.name, second.name);
            assert_eq!(first.inherited, second.inherited);
            assert!(first.inherited.iter().all(|number| *number > 2), "{:?}", first.inherited);
        }
        (Err(first), Err(second)) => {
            assert_eq!(first.to_string(), second.to_string());
            assert!(!matches!(first, StateError::Memory(_)), "{first}");
        }
        _ => panic!("{first:?} and then {second:?}"),
    }
    drop((first, second));
    assert_eq!(next_descriptor(), before, "descriptors were left behind");
});

fn parse(data: &[u8]) -> Result<Saved, StateError> {
    let fill = |to: &mut [u8]| {
        to.copy_from_slice(data);
        Ok(())
    };
    let mut taken = Taken::stand_ins().expect("there is /dev/null");
    state::parse(data.len(), fill, options(), &mut taken)
}

/// A command line under which every part of a state is read.
fn options() -> &'static Options {
    static OPTIONS: OnceLock<Options> = OnceLock::new();
    OPTIONS.get_or_init(|| {
        let words = "-c id -u id -r /bin/sh -b / -l k8s-file:/log -l json-file:/json -l journald --sdnotify-socket @host \
                     --exit-dir /x --persist-dir /p";
        match options::parse(words.split_whitespace().map(OsString::from), &|_| None) {
            Ok(Parsed::Run(options, _)) => *options,
            other => panic!("{other:?}"),
        }
    })
}

/// The kernel gives the lowest number that is free.
fn next_descriptor() -> i32 {
    File::open("/dev/null").expect("there is /dev/null").as_raw_fd()
}
