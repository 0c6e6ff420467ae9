//! The watch and its verdict in the state that an upgrade hands over: descriptors and first counts stay, since the cgroup
//! may be gone by now.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::sys::eventfd::EventFd;

use super::{Counted, Counters, OomWatch, Source, Verdict};
use crate::sys;
use crate::upgrade::state::{Given, StateError, Taken, count};
use crate::upgrade::state_capnp::{oom_watch, verdict};

impl Verdict {
    pub fn save(self, mut to: verdict::Builder<'_>) {
        match self {
            Verdict::Unknown => to.set_unknown(()),
            Verdict::None => to.set_none(()),
            Verdict::Limit => to.set_limit(()),
            Verdict::Oom { kills } => to.set_kills(kills),
        }
    }

    pub fn restore(from: verdict::Reader<'_>) -> Result<Verdict, StateError> {
        Ok(match from.which()? {
            verdict::Unknown(()) => Verdict::Unknown,
            verdict::None(()) => Verdict::None,
            verdict::Limit(()) => Verdict::Limit,
            verdict::Kills(kills) => Verdict::Oom { kills: count(kills, "kills")? },
        })
    }
}

impl OomWatch {
    pub fn save(&self, mut to: oom_watch::Builder<'_>, given: &mut Given) {
        self.verdict.save(to.reborrow().init_verdict());
        let source = to.init_source();
        match &self.counters {
            Source::V2 { all, local } => {
                let mut to = source.init_v2();
                all.save(to.reborrow().init_all(), given);
                if let Some(local) = local {
                    local.save(to.init_local(), given);
                }
            }
            Source::V1 { control, event, events, removed } => {
                let mut to = source.init_v1();
                control.save(to.reborrow().init_control(), given);
                to.set_event(given.give(event));
                to.set_events(*events);
                to.set_removed(*removed);
            }
        }
    }

    pub fn restore(from: oom_watch::Reader<'_>, taken: &mut Taken) -> Result<OomWatch, StateError> {
        let counters = match from.get_source().which()? {
            oom_watch::source::V2(v2) => {
                let v2 = v2?;
                let local = v2.has_local().then(|| Counted::restore(v2.get_local()?, taken)).transpose()?;
                Source::V2 { all: Counted::restore(v2.get_all()?, taken)?, local }
            }
            oom_watch::source::V1(v1) => {
                let v1 = v1?;
                Source::V1 {
                    control: Counted::restore(v1.get_control()?, taken)?,
                    event: event(taken.take(v1.get_event())?),
                    events: count(v1.get_events(), "events")?,
                    removed: v1.get_removed(),
                }
            }
        };
        Ok(OomWatch { counters, verdict: Verdict::restore(from.get_verdict()?)? })
    }
}

fn event(fd: OwnedFd) -> EventFd {
    sys::event_fd(fd)
}

impl Counted {
    fn save(&self, mut to: oom_watch::counted::Builder<'_>, given: &mut Given) {
        to.set_fd(given.give(&self.file));
        if let Some(oom) = self.base.oom {
            to.set_has_oom(true);
            to.set_oom(oom);
        }
        if let Some(kill) = self.base.oom_kill {
            to.set_has_kill(true);
            to.set_kill(kill);
        }
    }

    fn restore(from: oom_watch::counted::Reader<'_>, taken: &mut Taken) -> Result<Counted, StateError> {
        let base = Counters {
            oom: from.get_has_oom().then(|| from.get_oom()),
            oom_kill: from.get_has_kill().then(|| from.get_kill()),
        };
        Ok(Counted { file: File::from(taken.take(from.get_fd())?), base })
    }
}

#[cfg(test)]
mod tests {
    use capnp::message::Builder;
    use nix::sys::eventfd::EfdFlags;

    use super::*;

    fn counted(oom: Option<u64>, oom_kill: Option<u64>) -> Counted {
        Counted { file: File::open("/dev/null").unwrap(), base: Counters { oom, oom_kill } }
    }

    fn bases(watch: &OomWatch) -> (Vec<Option<Counters>>, Option<(u64, bool)>) {
        match &watch.counters {
            Source::V2 { all, local } => (vec![Some(all.base), local.as_ref().map(|local| local.base)], None),
            Source::V1 { control, events, removed, .. } => (vec![Some(control.base)], Some((*events, *removed))),
        }
    }

    #[test]
    fn first_counts_and_verdicts_are_handed_over() {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let v1 = Source::V1 { control: counted(None, Some(3)), event, events: 5, removed: true };
        let v2 = |local| Source::V2 { all: counted(Some(1), Some(2)), local };
        for (counters, verdict) in [
            (v2(None), Verdict::Unknown),
            (v2(Some(counted(None, None))), Verdict::Limit),
            (v1, Verdict::Oom { kills: 4 }),
            (v2(Some(counted(Some(9), None))), Verdict::None),
        ] {
            let before = OomWatch { counters, verdict };
            let mut message = Builder::new_default();
            before.save(message.init_root(), &mut Given::default());
            let root = message.get_root_as_reader().unwrap();
            let after = OomWatch::restore(root, &mut Taken::stand_ins().unwrap()).unwrap();
            assert_eq!((bases(&after), after.verdict), (bases(&before), verdict));
        }
    }
}
