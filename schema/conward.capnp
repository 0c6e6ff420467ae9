# The service that a monitor offers on `<bundle>/conward.sock` (a Unix stream socket; see conward(8), SERVICE).
#
# The bootstrap capability of a connection is a `Monitor`. Only root and the monitor's own user are served. A peer that
# is not, or one connection too many, gets an `Abort` message with the reason (rpc.capnp, Message.abort).
#
# What the monitor refuses comes back as a `Refusal` in the result, so that programs can tell cases apart; it is null
# when the call was done. Exceptions are left for what the protocol itself forbids.
#
# Evolution: fields and methods are only ever added, at the end.

@0xc2a1f0b2b86ee4d5;

interface Monitor {
  version @0 () -> (version :Version);

  inspect @1 () -> (state :State);
  # Everything that the monitor knows of itself and its container, at one moment.

  wait @2 () -> (exit :Exit, durable :Bool, refusal :Refusal);
  # Answers once, when the container's process has ended and its record has been published. `durable` says that the
  # record has also been brought to the disk.

  attach @3 (request :AttachRequest, output :Output) -> (attachment :Attachment, refusal :Refusal);
  # Sends what the container says to `output`, history first if wanted. Dropping the attachment detaches.

  exec @4 (spec :ExecSpec, output :Output) -> (exec :Exec, id :UInt32, refusal :Refusal);
  # Runs one more process in the container. With an `output` its streams go there, and wait for it; with a null one they
  # are captured and come with the result.

  execResult @5 (id :UInt32) -> (result :ExecResult, refusal :Refusal);
  # The result of one of the last execs, by number, whoever started it; refused with `notFound` or `busy` (still running).

  resize @6 (rows :UInt16, columns :UInt16) -> (refusal :Refusal);

  signal @7 (number :UInt8) -> (refusal :Refusal);
  # Sends a signal to the container's process.

  closeStdin @8 () -> (refusal :Refusal);
  # The container reads an end of file, whoever is still attached.

  reopenLog @9 () -> (files :List(LogSwitch), refusal :Refusal);
  # Goes on in the file that is at the log's path now, or in a new one; with --log-rotate it rotates. Doing it twice does
  # no harm.

  setLogPolicy @10 (stream :Stream, policy :LogPolicy) -> (refusal :Refusal);

  upgrade @11 (program :Text, checkOnly :Bool) -> (refusal :Refusal);
  # Replaces the running monitor by `program` (default: the file it was started from). Answered when the candidate has
  # accepted the state; the connection then ends, and the socket goes on under the new program.
}

struct Refusal {
  code @0 :Code;
  text @1 :Text;
  # For people: what was being done to what, and why not.
  errno @2 :Int32;
  # errno(3) of the operation that failed, 0 if there was none.

  enum Code {
    failed @0;
    # The operation was tried and failed.
    invalid @1;
    # The request contradicts itself or is out of range.
    notRunning @2;
    # There is no running process to do this to.
    noTerminal @3;
    noStdin @4;
    # There is no stdin, or it is closed.
    noHistory @5;
    # No log that could be read back exactly.
    notFound @6;
    tooMany @7;
    # A limit of the monitor is reached.
    busy @8;
  }
}

struct Version {
  conward @0 :Text;
  conmon @1 :Text;
  # The conmon version whose contract is kept.
  commit @2 :Text;
  protocol @3 :UInt16;
  # Of this schema; raised when something is added.
  pid @4 :Int32;
  startedAt @5 :Int64;
  # When this program began to run, nanoseconds since 1970: changes with an upgrade.
}

enum Stream {
  stdout @0;
  # Also everything that a terminal says.
  stderr @1;
}

struct State {
  id @0 :Text;
  name @1 :Text;
  bundle @2 :Text;
  runtime @3 :Text;
  phase @4 :Phase;
  pid @5 :Int32;
  # Of the container's process; 0 when there is none.
  monitorPid @6 :Int32;
  startedAt @7 :Int64;
  # Nanoseconds since 1970.
  terminal @8 :Bool;
  stdin @9 :Bool;
  # Stdin is open.
  rows @10 :UInt16;
  columns @11 :UInt16;
  streams @12 :List(StreamState);
  sinks @13 :List(Sink);
  clients @14 :List(Client);
  execs @15 :List(ExecState);
  connections @16 :UInt32;
  memory @17 :Memory;
  descriptors @18 :UInt32;
  errors @19 :List(Text);
  # The monitor's last complaints, oldest first.
  oomKills @20 :Int64;
  # -1: unknown.
  attachSocket @21 :Text;
  exitFile @22 :Text;
  processLabel @23 :Text;

  enum Phase {
    held @0;
    starting @1;
    running @2;
    ended @3;
    failed @4;
  }
}

struct StreamState {
  stream @0 :Stream;
  bytes @1 :UInt64;
  # That the container wrote: the offset of its next byte.
  records @2 :UInt64;
  lost @3 :UInt64;
  # Bytes that the log does not have.
  gaps @4 :UInt64;
  open @5 :Bool;
  policy @6 :LogPolicy;
}

struct Sink {
  driver @0 :Text;
  path @1 :Text;
  inode @2 :UInt64;
  size @3 :UInt64;
  rotations @4 :UInt64;
  error @5 :Text;
  # Why it takes nothing now; empty while all is well.
}

struct Client {
  kind @0 :Kind;
  pid @1 :Int32;
  behind @2 :Bool;
  # It is being served from the log or a queue.
  waitingFor @3 :UInt64;
  # Bytes that it has not taken yet, as far as known.
  types @4 :Bool;

  enum Kind {
    attachSocket @0;
    service @1;
  }
}

struct ExecState {
  id @0 :UInt32;
  pid @1 :Int32;
  startedAt @2 :Int64;
  terminal @3 :Bool;
  captured @4 :UInt64;
  # Bytes held for the result.
  command @5 :Text;
}

struct Memory {
  private @0 :UInt64;
  # Bytes that only this process has.
  resident @1 :UInt64;
  heap @2 :UInt64;
  # Bytes in use of it.
}

struct Exit {
  reason @0 :Reason;
  status @1 :Int32;
  # As in exit files: the exit code, 128 + signal, or -1.
  exitCode @2 :Int32;
  # Valid if `reason` is `exited`.
  signal @3 :Int32;
  # Valid if `reason` is `signalled`.
  oomKilled @4 :Verdict;
  startedAt @5 :Int64;
  finishedAt @6 :Int64;
  stdout @7 :Total;
  stderr @8 :Total;
  pid @9 :Int32;

  enum Reason {
    exited @0;
    signalled @1;
    timedOut @2;
    unknown @3;
    neverStarted @4;
  }

  enum Verdict {
    unknown @0;
    no @1;
    yes @2;
  }
}

struct Total {
  bytes @0 :UInt64;
  lost @1 :UInt64;
}

struct AttachRequest {
  stdin @0 :Bool;
  stdout @1 :Bool = true;
  stderr @2 :Bool = true;
  history :union {
    none @3 :Void;
    # From now on.
    all @4 :Void;
    # Everything that the log has of this container's run.
    bytes @5 :UInt64;
    # The last so many bytes.
    lines @6 :UInt64;
    # The last so many lines.
    from :group {
      # Everything from these offsets on: a client that comes again goes on where it was.
      stdout @7 :UInt64;
      stderr @8 :UInt64;
    }
  }
  rows @9 :UInt16;
  columns @10 :UInt16;
  # The client's terminal; 0: leave the size alone.
  leaveStdinOpen @11 :Bool;
  # The container's stdin stays open when this client leaves.
}

interface Output {
  # Where a client wants output; made by the client.

  write @0 (stream :Stream, offset :UInt64, data :Data) -> stream;
  # `offset` counts the bytes of this stream since the container's start.

  gap @1 (stream :Stream, offset :UInt64, lost :UInt64) -> stream;
  # These bytes cannot be had any more.

  end @2 (end :End) -> ();
  # The last call: nothing follows.
}

struct End {
  reason @0 :Reason;
  exit @1 :Exit;
  # How the process ended; null unless `reason` is `ended` or `held`.
  stdout @2 :UInt64;
  stderr @3 :UInt64;
  # Offsets behind the last byte of each stream.
  lost @4 :UInt64;
  # Sum of the gaps.

  enum Reason {
    ended @0;
    # The process has ended and this was all.
    detached @1;
    upgrade @2;
    # The monitor is being replaced: come again with `from`.
    held @3;
    # The process has ended; some other process still has its pipes, and is not waited for.
  }
}

interface Attachment {
  write @0 (data :Data) -> stream;
  # Input for the container. Answered when it has taken it.
  closeStdin @1 () -> (refusal :Refusal);
  resize @2 (rows :UInt16, columns :UInt16) -> (refusal :Refusal);
}

struct ExecSpec {
  args @0 :List(Text);
  # The command and its arguments. What is not said here is as for the container's own process.
  env @1 :List(Text);
  # `NAME=VALUE`, for the runtime's `exec --env`: runc adds them to the container's, crun (1.8.1) has them instead. A
  # `process` object says it for all runtimes.
  cwd @2 :Text;
  user @3 :Text;
  # UID[:GID]
  additionalGids @4 :List(UInt32);
  capabilities @5 :List(Text);
  # Added, as `CAP_NAME`.
  noNewPrivileges @6 :Bool;
  terminal @7 :Bool;
  process @8 :Data;
  # Instead of all above but `terminal`, which must agree: an OCI process object (runtime-spec, config.md, Process).
  stdin @9 :Bool;
  rows @10 :UInt16;
  columns @11 :UInt16;
  timeout @12 :UInt64;
  # Milliseconds until it and all that came from it are killed; 0: none.
  outputMax @13 :UInt64 = 16777216;
  # Bytes captured at most over both streams; what is more is counted and dropped. Not for an `output`.
  onDisconnect @14 :OnDisconnect;

  enum OnDisconnect {
    kill @0;
    # It ends when the connection, or the last reference to `Exec`, goes away.
    detach @1;
    # It goes on; `execResult` tells how it ended.
  }
}

interface Exec {
  wait @0 () -> (result :ExecResult);
  write @1 (data :Data) -> stream;
  closeStdin @2 () -> (refusal :Refusal);
  resize @3 (rows :UInt16, columns :UInt16) -> (refusal :Refusal);
  signal @4 (number :UInt8) -> (refusal :Refusal);
}

struct ExecResult {
  id @0 :UInt32;
  exit @1 :Exit;
  error @2 :Text;
  # What the runtime said, if it never started.
  stdout @3 :Data;
  stderr @4 :Data;
  # Captured output. It is handed over once.
  truncated @5 :Bool;
  # There was more output than was to be captured; `exit` has the true totals.
  held @6 :Bool;
  # Another process still had the pipes when this one had ended: what it writes is not here.
}

struct LogSwitch {
  driver @0 :Text;
  path @1 :Text;
  inode @2 :UInt64;
  stdout @3 :UInt64;
  stderr @4 :UInt64;
  # Offsets of the first bytes of each stream that go to this file.
}

struct LogPolicy {
  union {
    pass @0 :Void;
    # No limit.
    limit :group {
      bytesPerSecond @1 :UInt64;
      burst @2 :UInt64;
      # Bytes that may come at once; 0: one second's worth.
      action @3 :Action;
    }
  }

  enum Action {
    backPressure @0;
    # The container waits.
    drop @1;
    # The log goes without; what is missing is counted, and noted where it is missing.
  }
}
