@0xd1a5c3f0b7e64928;
# What a monitor hands over to the program that replaces it, in a sealed memfd. See src/upgrade.rs.
#
# A field is never removed or given another meaning. What only newer programs know has a default that is right for
# older ones, or the version is raised: a program refuses a version that it does not know.
#
# Descriptors are numbers; 0 means none, as 0 to 2 are never handed over. Durations are in milliseconds. What the
# command line says is not in here: the new program gets the same one.

# What capnproto-rust looks for, by this number: the module that the generated code lies in.
annotation parentModule @0xabee386cd1450364 (file) :Text;
$parentModule("upgrade");

struct State {
  version @0 :UInt32;
  # What ps shows: an exec by descriptor would change it.
  name @1 :Data;
  session @2 :Session;
  log @3 :Log;
  attach @4 :Attach;
  ctl @5 :Fifo;
  winsz @6 :Fifo;
  notify @7 :Relay;
  oom @8 :OomWatch;
  verdict @9 :Verdict;
  reports @10 :Reports;
  exitFiles @11 :List(ExitFile);
  timers @12 :Timers;
  launch @13 :Launch;
  # Left open by the first caller, owned by nobody, closed at the end. They never had close-on-exec.
  inherited @14 :List(Int32);
  # The socket of the service; its connections end.
  service @15 :Int32;
  # What each stream may log.
  policies @16 :List(Policy);
  execs @17 :List(Exec);
  # Results that are kept, each a message with an ExecResult of conward.capnp.
  results @18 :List(Data);
  # Number of the last exec.
  lastExec @19 :UInt32;
}

struct Policy {
  # 0: no limit.
  rate @0 :UInt64;
  burst @1 :UInt64;
  drops @2 :Bool;
}

# An exec that runs and whose output is captured.
struct Exec {
  id @0 :UInt32;
  session @1 :Session;
  terminal @2 :Bool;
  stdin @3 :Bool;
  detached @4 :Bool;
  command @5 :Text;
  # Nobody takes the output any more.
  forgotten @6 :Bool;
  stdout @7 :Data;
  stderr @8 :Data;
  outputMax @9 :UInt64;
  truncated @10 :Bool;
  # Until its time is up; 0: never.
  timeLeft @11 :UInt64;
}

struct Session {
  pid @0 :Int32;
  pidfd @1 :Int32;
  startedSeconds @2 :UInt64;
  startedNanos @3 :UInt32;
  stdout @4 :Output;
  stderr @5 :Output;
  input @6 :Input;
  terminal @7 :Int32;
  hasWindow @8 :Bool;
  rows @9 :UInt16;
  columns @10 :UInt16;
  # Killed because its time was up, and not gone yet.
  timedOut @11 :Bool;
  # Bytes of streams that have come to their end.
  closedStdout @12 :UInt64;
  closedStderr @13 :UInt64;
  # Input that waits for its turn, and an end of file behind it.
  typed @14 :Data;
  closing @15 :Bool;
}

struct Output {
  fd @0 :Int32;
  tty @1 :Bool;
  hungUp @2 :Bool;
  # Read, and not passed on yet.
  held @3 :Data;
  mayGrow @4 :Bool;
  offset @5 :UInt64;
}

struct Input {
  # None: closed.
  fd @0 :Int32;
  pending @1 :Data;
}

struct Log {
  k8s @0 :LogFile;
  json @1 :LogFile;
  journald @2 :Journald;
}

struct LogFile {
  fd @0 :Int32;
  generation @1 :UInt64;
  span @2 :Span;
  size @3 :UInt64;
  total @4 :UInt64;
  readable @5 :Bool;
  # errno of the last write; 0 while all is well.
  error @6 :Int32;
  torn @7 :UInt64;
  unnoted @8 :PerStream;
  lost @9 :PerStream;
  retries @10 :Bool;
  retryLeft @11 :UInt64;
  past @12 :List(PastFile);
  hold @13 :Bool;
  offsets @14 :PerStream;
  owing @15 :Bool;
  gaps @16 :List(Gap);
  # What lies before was given up.
  floor @17 :Mark;
  records @18 :PerStream;
}

# Where what can be read back of a file begins.
struct Span {
  begin @0 :UInt64;
  offsets @1 :PerStream;
  shift @2 :Int64;
}

struct PastFile {
  # 0: not open now.
  fd @0 :Int32;
  number @1 :UInt64;
  device @2 :UInt64;
  inode @3 :UInt64;
  head @4 :Data;
  span @5 :Span;
  end @6 :UInt64;
  ended @7 :PerStream;
}

struct Mark {
  generation @0 :UInt64;
  offset @1 :UInt64;
  offsets @2 :PerStream;
}

struct Gap {
  mark @0 :Mark;
  note @1 :UInt64;
  lost @2 :PerStream;
}

struct PerStream {
  stdout @0 :UInt64;
  stderr @1 :UInt64;
}

struct Journald {
  stdout @0 :Line;
  stderr @1 :Line;
  entries @2 :UInt64;
  bytes @3 :UInt64;
  refusedEntries @4 :UInt64;
  refusedBytes @5 :UInt64;
  lastError @6 :Int32;
  refused @7 :PerStream;
  # It took nothing although it was waited for.
  stuck @8 :Bool;

  struct Line {
    kept @0 :Data;
    hasPriority @1 :Bool;
    priority @2 :UInt8;
  }
}

struct Attach {
  # Only with conmon's socket.
  listener @0 :Int32;
  # The symlink to the bundle; empty if there is none.
  link @1 :Data;
  next @2 :UInt32;
  clients @3 :List(Client);
}

struct Client {
  id @0 :UInt32;
  fd @1 :Int32;
  sending @2 :Bool;
  left @3 :Bool;
  stalled @4 :Bool;
  stalledFor @5 :UInt64;
  feed :union {
    live @6 :Void;
    deaf @7 :Void;
    behind @8 :Behind;
    queued @9 :Queued;
  }

  struct Behind {
    mark @0 :Mark;
    # What lies before these offsets is done.
    from @1 :PerStream;
  }

  struct Queued {
    stdout @0 :Data;
    stderr @1 :Data;
  }
}

struct Fifo {
  fd @0 :Int32;
  # The beginning of a line whose newline has not come yet.
  line @1 :Data;
  discarding @2 :Bool;
}

struct Relay {
  inside @0 :Int32;
  outside @1 :Int32;
}

struct OomWatch {
  verdict @0 :Verdict;
  source :union {
    v2 @1 :V2;
    v1 @2 :V1;
  }

  struct V2 {
    all @0 :Counted;
    local @1 :Counted;
  }

  struct V1 {
    control @0 :Counted;
    event @1 :Int32;
    events @2 :UInt64;
    removed @3 :Bool;
  }

  struct Counted {
    fd @0 :Int32;
    hasOom @1 :Bool;
    oom @2 :UInt64;
    hasKill @3 :Bool;
    kill @4 :UInt64;
  }
}

struct Verdict {
  union {
    unknown @0 :Void;
    none @1 :Void;
    limit @2 :Void;
    kills @3 :UInt64;
  }
}

struct Reports {
  sync @0 :Int32;
  attach @1 :Int32;
}

struct ExitFile {
  # Where it will appear.
  path @0 :Data;
  # The name that waits for it in the same directory.
  prepared @1 :Data;
}

struct Timers {
  left @0 :List(Timer);

  struct Timer {
    kind @0 :Kind;
    left @1 :UInt64;
  }

  enum Kind {
    timeout @0;
    killed @1;
    trim @2;
    stall @3;
    refill @4;
  }
}

struct Launch {
  # Bit N - 1 is signal N.
  mask @0 :UInt64;
  hasOomScoreAdj @1 :Bool;
  oomScoreAdj @2 :Data;
}
