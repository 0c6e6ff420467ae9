//! What the container says: to the log, then to the clients, who never hold it up where a log can be read back.

use std::time::Instant;

use super::{KEPT, Monitor, READ_BUFFER, TRIM_AFTER, unwatch};
use crate::attach::Attach;
use crate::policy::{self, Action, Meter, Policy};
use crate::session::{CONTAINER, Phase};
use crate::source::Source;
use crate::stdio::Turn;
use crate::stream::Stream;
use crate::timers::Timer;

impl Monitor<'_> {
    pub(super) fn pump(&mut self, stream: Stream) -> Turn {
        if !self.session.may_pass(stream.index()) || self.held_up(stream) {
            return Turn::Wait;
        }
        let (limit, drops) = self.room(stream);
        if limit == Some(0) && !drops {
            self.timers.set_sooner(Timer::Refill, self.meters[stream.index()].refill());
            return Turn::Wait;
        }
        let starting = self.session.phase == Phase::Starting;
        let piece = self.log.begin_turn();
        let Some(output) = &mut self.session.outputs[stream.index()] else { return Turn::Wait };
        let (complaint, attach, log) = (&mut self.session.complaint, &mut self.attach, &mut self.log);
        let (registry, out) = (self.poll.registry(), self.out_buffer.bytes());
        let (before, meter) = (output.offset, &mut self.meters[stream.index()]);
        let room = limit.filter(|_| !drops).map_or(READ_BUFFER, |room| usize::try_from(room).unwrap_or(READ_BUFFER));
        let buffer = self.read_buffer.bytes();
        let room = room.min(piece).min(buffer.len()).max(output.ahead().len() + 1);
        let (mut left, mut at, mut arrived) = (limit.unwrap_or(u64::MAX), before, false);
        let turn = output.pump(&mut buffer[..room], |stream, chunk| {
            if starting && stream == Stream::Stderr {
                complaint.add(chunk);
            }
            // Who connected before this was written is to get it, and may have come since the last look for events.
            if let Some(attach) = attach.as_mut().filter(|attach| attach.is_called()) {
                attach.accept(registry);
                log.hold(!attach.is_empty());
                arrived = true;
            }
            let (logged, dropped) = chunk.split_at(if drops { policy::fitting(chunk, left) } else { chunk.len() });
            left = left.saturating_sub(logged.len() as u64);
            meter.pass(logged.len() as u64);
            for (part, keep) in [(logged, true), (dropped, false)] {
                if part.is_empty() {
                    continue;
                }
                let recorded = if keep { log.write(out, stream, part) } else { log.leave_out(stream, part) };
                if let Some(attach) = attach.as_mut().filter(|attach| !attach.is_empty()) {
                    attach.offer(registry, stream, at, part, recorded);
                }
                at += part.len() as u64;
            }
            let held_up = attach.as_ref().is_some_and(|attach| attach.holds_up(stream));
            !held_up && !log.is_tired() && (drops || left > 0)
        });
        self.busy |= output.offset - before > KEPT as u64;
        if turn == Turn::Closed {
            self.unwatch_output(stream);
            self.session.close_output(stream.index());
        }
        self.after_output();
        if arrived {
            self.wake_typing_clients();
        }
        if turn == Turn::Closed || self.held_up(stream) { Turn::Wait } else { turn }
    }

    /// Bytes that a stream may log now, and whether what is more is dropped.
    pub(super) fn room(&mut self, stream: Stream) -> (Option<u64>, bool) {
        match &mut self.meters[stream.index()] {
            Meter { policy: Policy::Pass, .. } => (None, false),
            meter => {
                let drops = matches!(meter.policy, Policy::Limit { action: Action::Drop, .. });
                (meter.room(Instant::now()), drops)
            }
        }
    }

    pub(super) fn held_up(&self, stream: Stream) -> bool {
        self.attach.as_ref().is_some_and(|attach| attach.holds_up(stream))
    }

    pub(super) fn unwatch_output(&self, stream: Stream) {
        if let Some(output) = &self.session.outputs[stream.index()] {
            unwatch(self.poll.registry(), output);
        }
    }

    /// What survivors of the container say from now on is not waited for: it is on no record.
    #[inline(never)]
    pub fn close_outputs(&mut self) {
        for stream in Stream::ALL {
            self.unwatch_output(stream);
            self.session.close_output(stream.index());
        }
    }

    /// Lets go of log files that nobody needs, and sees to deadlines that output can bring about.
    pub(super) fn after_output(&mut self) {
        if let (Some(attach), Some(k8s)) = (&self.attach, &mut self.log.k8s) {
            k8s.file.release_before(attach.oldest_needed().unwrap_or(u64::MAX));
        }
        if self.busy && !self.timers.is_set(Timer::Trim) {
            self.busy = false;
            self.timers.set(Timer::Trim, TRIM_AFTER);
        }
        self.watch_stalls();
    }

    // ------------------------------------------------------------ clients

    #[inline(never)]
    pub fn accept(&mut self) -> Turn {
        let Some(attach) = &mut self.attach else { return Turn::Wait };
        let turn = attach.accept(self.poll.registry());
        self.log.hold(!attach.is_empty());
        self.wake_typing_clients();
        turn
    }

    #[inline(never)]
    pub(super) fn serve_client(&mut self, id: u32) -> Turn {
        let Some(attach) = &mut self.attach else { return Turn::Wait };
        let log = self.log.k8s.as_ref().map(|k8s| &k8s.file);
        let held = Stream::ALL.map(|stream| attach.holds_up(stream));
        let output = attach.serve(self.poll.registry(), id, log, self.read_buffer.bytes());
        if output == Turn::Closed {
            self.disconnect(id);
        }
        for stream in Stream::ALL {
            if held[stream.index()] && !self.held_up(stream) {
                self.wake(Source::Output(CONTAINER, stream));
            }
        }
        let input = self.receive(id);
        if output == Turn::Again || input == Turn::Again { Turn::Again } else { Turn::Wait }
    }

    pub(super) fn client_gone(&mut self, id: u32) {
        let Some(attach) = &mut self.attach else { return };
        let held = Stream::ALL.map(|stream| attach.holds_up(stream));
        attach.remove(id);
        self.log.hold(!attach.is_empty());
        // Whoever could not be accepted for want of descriptors waits without a further event.
        self.wake(Source::Listener);
        self.after_output();
        for stream in Stream::ALL {
            if held[stream.index()] {
                self.wake(Source::Output(CONTAINER, stream));
            }
        }
    }

    pub(super) fn watch_stalls(&mut self) {
        if let Some(limit) = self.options.attach_stall_timeout
            && !self.timers.is_set(Timer::Stall)
            && self.attach.as_ref().is_some_and(Attach::any_stalled)
        {
            self.timers.set(Timer::Stall, limit);
        }
    }
}
