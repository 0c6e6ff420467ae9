//! All unsafe code: what nix does not wrap, behind safe functions.

mod memory;

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use libc::pid_t;
use nix::sys::eventfd::EventFd;

pub use memory::{Arena, forget_program, heap_in_use, keep_heap_small, release_memory};

/// Turns the `-1` of a system call into its `errno`.
fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

// ---------------------------------------------------------------- descriptors

/// Takes over a descriptor that somebody left open for us, after checking that it is open.
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only looks at the descriptor table.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: the descriptor is open and, being inherited and named to us by number, nothing else here owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes a descriptor that nothing in this process owns.
pub fn close_raw(fd: RawFd) {
    // SAFETY: closing has no memory effects; callers pass descriptors from the start-up snapshot, owned by nobody.
    unsafe { libc::close(fd) };
}

/// Closes every descriptor from 3 upwards; only for a process that is about to exec or to end.
pub fn close_from_3() {
    // SAFETY: no memory effects; the caller uses no owned descriptor afterwards.
    unsafe { libc::close_range(3, u32::MAX, 0) };
}

/// Closes every descriptor but 0, 1, 2 and `needed`.
pub fn close_all_but(needed: &[RawFd]) {
    let mut needed: Vec<u32> = needed.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    needed.sort_unstable();
    let mut from = 3;
    for fd in needed {
        if fd > from {
            // SAFETY: no memory effects; the caller says that nothing in this range is used any more.
            unsafe { libc::close_range(from, fd - 1, 0) };
        }
        from = from.max(fd + 1);
    }
    // SAFETY: as above.
    unsafe { libc::close_range(from, u32::MAX, 0) };
}

/// Says whether a descriptor is closed when another program is executed.
pub fn set_close_on_exec(fd: RawFd, close: bool) {
    // SAFETY: F_SETFD changes a flag of the descriptor table, or nothing if there is no such descriptor.
    unsafe { libc::fcntl(fd, libc::F_SETFD, if close { libc::FD_CLOEXEC } else { 0 }) };
}

/// An event counter behind a descriptor that somebody left open for us.
pub fn event_fd(fd: OwnedFd) -> EventFd {
    // SAFETY: the descriptor is open and owned; one that is no eventfd only makes reads and writes fail.
    unsafe { EventFd::from_owned_fd(fd) }
}

/// Bytes that can be read right now (pipes and terminals).
pub fn readable_bytes(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut count: c_int = 0;
    // SAFETY: FIONREAD writes one int, to `count`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Sets the size of the terminal behind a pty master.
pub fn set_window_size(fd: BorrowedFd<'_>, rows: u16, cols: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

// ---------------------------------------------------------------- packets

/// Packets that one [`send_packets`] hands to the kernel at most.
pub const PACKETS_MAX: usize = 16;

/// Sends each of `parts` as one packet behind the byte `lead`, without blocking.
///
/// Returns how many packets were taken; fewer than `parts.len()` means that the socket is full. At most
/// [`PACKETS_MAX`] are tried.
pub fn send_packets(fd: BorrowedFd<'_>, lead: u8, parts: &[&[u8]]) -> io::Result<usize> {
    // SAFETY: all-zero is a valid value of these plain C structures.
    let mut iovecs: [[libc::iovec; 2]; PACKETS_MAX] = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut messages: [libc::mmsghdr; PACKETS_MAX] = unsafe { mem::zeroed() };
    let mut lead = lead;
    let mut count = 0;
    for ((part, iovec), message) in parts.iter().zip(&mut iovecs).zip(&mut messages) {
        iovec[0] = libc::iovec { iov_base: (&raw mut lead).cast(), iov_len: 1 };
        iovec[1] = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
        message.msg_hdr.msg_iov = iovec.as_mut_ptr();
        message.msg_hdr.msg_iovlen = 2;
        count += 1;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the first `count` headers point at live iovecs, which point at `lead` and at the borrowed parts; the
    // kernel only reads them.
    let sent = check(unsafe { libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), count, flags as _) })?;
    Ok(usize::try_from(sent).unwrap_or(0))
}

// ---------------------------------------------------------------- processes

/// What a child is started with; everything is prepared beforehand, since the child may not allocate.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// argv[0] is executed as a path.
    pub argv: &'a [CString],
    /// `None` is the environment of this process.
    pub env: Option<&'a [CString]>,
    /// Becomes descriptors 0, 1 and 2; `None` leaves what is there. The sources must be above 2.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// Which of 0, 1 and 2 get mode 0777, so that a container's user can open `/dev/stdout` again.
    pub open_up: [bool; 3],
    /// Stays open in the child, by its number, although it is close-on-exec here.
    pub keep: Option<BorrowedFd<'a>>,
    /// Text for `/proc/self/oom_score_adj`.
    pub oom_score_adj: Option<&'a CStr>,
    /// The child is killed when this process dies.
    pub dies_with_us: bool,
    /// `LISTEN_PID` is set to the child's own pid.
    pub own_listen_pid: bool,
    /// Only descriptors 0 to 2 remain.
    pub close_rest: bool,
    /// The signal mask to run with.
    pub mask: &'a libc::sigset_t,
}

/// What the child needs, in plain pointers, and where it leaves its error.
struct Launch {
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    stdio: [c_int; 3],
    open_up: [bool; 3],
    keep: c_int,
    oom_score_adj: Option<(*const c_char, usize)>,
    dies_with_us: bool,
    close_rest: bool,
    listen_pid: *mut u8,
    mask: *const libc::sigset_t,
    error: c_int,
}

// SAFETY: the C library's own variable, with its type (environ(7)).
unsafe extern "C" {
    static environ: *const *const c_char;
}

const LISTEN_PID: &[u8] = b"LISTEN_PID=";

/// Starts a program and returns its pid, or why it could not be executed.
///
/// This is vfork in shape: parent and child share memory until the child has executed, so no page is copied, and an
/// error of `execve` comes back as an error of this function. (`posix_spawn` would reset 64 signals one by one.)
pub fn spawn(spec: &Spawn<'_>) -> io::Result<pid_t> {
    let argv: Vec<*const c_char> = spec.argv.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect();
    let mut listen_pid = [0u8; 32];
    let envp = environment(spec, &mut listen_pid);
    let mut launch = Launch {
        path: argv[0],
        argv: argv.as_ptr(),
        // SAFETY: `environ` is valid while nobody changes the environment, which this program never does.
        envp: envp.as_ref().map_or_else(|| unsafe { environ }, |list| list.as_ptr()),
        stdio: spec.stdio.map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd())),
        open_up: spec.open_up,
        keep: spec.keep.map_or(-1, |fd| fd.as_raw_fd()),
        oom_score_adj: spec.oom_score_adj.map(|text| (text.as_ptr(), text.to_bytes().len())),
        dies_with_us: spec.dies_with_us,
        close_rest: spec.close_rest,
        listen_pid: if spec.own_listen_pid { listen_pid.as_mut_ptr() } else { ptr::null_mut() },
        mask: spec.mask,
        error: 0,
    };
    let mut stack = Arena::new(STACK)?;
    let top = stack.bytes().as_mut_ptr_range().end;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: CLONE_VFORK suspends us until the child has executed or ended, so the stack, `launch` and all it points
    // to outlive the child's use of them; the child calls only async-signal-safe functions.
    let pid = check(unsafe { libc::clone(child, top.cast(), flags, (&raw mut launch).cast()) })?;
    if launch.error != 0 {
        // SAFETY: plain wait for the child that has already ended.
        unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
        return Err(io::Error::from_raw_os_error(launch.error));
    }
    Ok(pid)
}

const STACK: usize = 64 * 1024;

/// The list for `execve`, where it differs from our own environment.
fn environment(spec: &Spawn<'_>, listen_pid: &mut [u8; 32]) -> Option<Vec<*const c_char>> {
    let mut list: Vec<*const c_char> = match spec.env {
        Some(env) => env.iter().map(|entry| entry.as_ptr()).collect(),
        None if !spec.own_listen_pid => return None,
        None => inherited_environment(),
    };
    if spec.own_listen_pid {
        listen_pid[..LISTEN_PID.len()].copy_from_slice(LISTEN_PID);
        // SAFETY: entries of an environment are C strings.
        list.retain(|entry| unsafe { !CStr::from_ptr(*entry).to_bytes().starts_with(LISTEN_PID) });
        list.push(listen_pid.as_ptr().cast());
    }
    list.push(ptr::null());
    Some(list)
}

fn inherited_environment() -> Vec<*const c_char> {
    let mut list = Vec::new();
    // SAFETY: `environ` is a list of pointers that ends with a null pointer, and nobody changes it.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            list.push(*entry);
            entry = entry.add(1);
        }
    }
    list
}

/// Runs in the child, on its own stack but in our memory, between clone and execve.
extern "C" fn child(argument: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a Launch that outlives us; only async-signal-safe calls follow, nothing allocates.
    unsafe {
        let launch = &mut *argument.cast::<Launch>();
        prepare(launch);
        if launch.error == 0 {
            libc::execve(launch.path, launch.argv, launch.envp);
            launch.error = *libc::__errno_location();
        }
        libc::_exit(127)
    }
}

/// SAFETY: only in the child, with a valid Launch.
unsafe fn prepare(launch: &mut Launch) {
    // SAFETY: plain system calls on values that `spawn` prepared.
    unsafe {
        if launch.dies_with_us {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        }
        for (target, source) in (0..).zip(launch.stdio) {
            if source >= 0 && libc::dup2(source, target) < 0 {
                launch.error = *libc::__errno_location();
                return;
            }
        }
        for (target, open_up) in (0..).zip(launch.open_up) {
            if open_up {
                libc::fchmod(target, 0o777);
            }
        }
        if launch.keep >= 0 {
            libc::fcntl(launch.keep, libc::F_SETFD, 0);
        }
        if let Some((text, len)) = launch.oom_score_adj {
            let fd = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if fd >= 0 {
                libc::write(fd, text.cast(), len);
                libc::close(fd);
            }
        }
        if !launch.listen_pid.is_null() {
            write_decimal(launch.listen_pid.add(LISTEN_PID.len()), libc::getpid().unsigned_abs());
        }
        if launch.close_rest {
            libc::close_range(3, u32::MAX, 0);
        }
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::sigprocmask(libc::SIG_SETMASK, launch.mask, ptr::null_mut());
    }
}

/// SAFETY: `at` must have room for 11 bytes.
unsafe fn write_decimal(at: *mut u8, mut number: u32) {
    let mut digits = [0u8; 10];
    let mut count = 0;
    loop {
        digits[count] = b'0' + (number % 10) as u8;
        count += 1;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    for (place, digit) in digits[..count].iter().rev().enumerate() {
        // SAFETY: at most ten digits and the final zero are written.
        unsafe { *at.add(place) = *digit };
    }
    // SAFETY: as above.
    unsafe { *at.add(count) = 0 };
}

/// Which side of a [`fork`] this is.
#[derive(Debug)]
pub enum Fork {
    Parent(pid_t),
    Child,
}

/// Forks this single-threaded process.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: there is one thread, so the child finds every lock and every structure in a consistent state.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Ends this process at once: no destructors, no at-exit work.
pub fn end(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// How a child ended, as `waitid` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Exited(i32),
    Signaled(i32),
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Status::Exited(code) => write!(f, "exited with status {code}"),
            Status::Signaled(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

/// A child that has ended, not yet reaped; `None` if there is none now.
pub fn ended_child() -> io::Result<Option<(pid_t, Status)>> {
    // SAFETY: siginfo_t is plain data.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: waitid writes one siginfo_t.
    check(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) })?;
    // SAFETY: waitid fills in the fields of SIGCHLD, or leaves the pid 0 when no child has ended.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let status = if info.si_code == libc::CLD_EXITED { Status::Exited(status) } else { Status::Signaled(status) };
    Ok(Some((pid, status)))
}

/// Frees the process table entry of a child that has ended.
pub fn reap(pid: pid_t) {
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(pid, ptr::null_mut(), libc::WNOHANG) };
}

/// Waits for a child to end.
pub fn wait_for(pid: pid_t) {
    // SAFETY: no status is asked for.
    while unsafe { libc::waitpid(pid, ptr::null_mut(), 0) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}

/// A descriptor that means this one process, however pids are reused.
pub fn pidfd_open(pid: pid_t) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the answer is a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    check(fd)?;
    // SAFETY: the kernel just made this descriptor for us; pidfds are close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to the process behind a pidfd.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    let none = ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means the one of kill(2).
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// From now on SIGTERM ends this process with status 1, as conmon's first process does.
pub fn exit_1_on_sigterm() {
    extern "C" fn handler(_: c_int) {
        end(1)
    }
    // SAFETY: the handler only calls _exit.
    unsafe { libc::signal(libc::SIGTERM, handler as *const () as libc::sighandler_t) };
}

/// For a process that has no container any more: signals have their default effect again.
pub fn detach_signals() {
    // SAFETY: an empty set is made before it is used; changing the mask has no memory effects.
    unsafe {
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// The mask of blocked signals, before ours is set.
pub fn signal_mask() -> libc::sigset_t {
    // SAFETY: a null set only asks; the answer is written to `mask`.
    unsafe {
        let mut mask: libc::sigset_t = mem::zeroed();
        libc::sigprocmask(libc::SIG_BLOCK, ptr::null(), &raw mut mask);
        mask
    }
}

/// A set of signals as a number: bit N - 1 is signal N.
pub fn mask_bits(mask: &libc::sigset_t) -> u64 {
    // SAFETY: sigismember only looks at the set.
    let has = |signal: &c_int| unsafe { libc::sigismember(mask, *signal) == 1 };
    (1..=64).filter(has).fold(0, |bits, signal| bits | 1 << (signal - 1))
}

/// The set that [`mask_bits`] made a number of.
pub fn mask_of(bits: u64) -> libc::sigset_t {
    // SAFETY: the set is emptied before it is used; signals that the C library keeps to itself are refused by it.
    unsafe {
        let mut mask: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut mask);
        for signal in (1..=64).filter(|signal| bits >> (signal - 1) & 1 == 1) {
            libc::sigaddset(&raw mut mask, signal);
        }
        mask
    }
}

/// Becomes another program with our environment; returns only why not.
pub fn execute(path: &CStr, argv: &[CString]) -> io::Error {
    let argv: Vec<*const c_char> = argv.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect();
    // SAFETY: path and list are C strings that live until the call returns, and so does the environment, which this
    // program never changes.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), environ) };
    io::Error::last_os_error()
}

/// True if `pid` is a child of this process, running or not yet reaped.
pub fn is_child(pid: pid_t) -> bool {
    let Ok(id) = libc::id_t::try_from(pid) else { return false };
    // SAFETY: siginfo_t is plain data, and waitid only writes to it; WNOWAIT leaves the child as it is.
    unsafe {
        let mut info: libc::siginfo_t = mem::zeroed();
        libc::waitid(libc::P_PID, id, &raw mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) == 0
    }
}

/// Seconds that local time is ahead of UTC at `seconds` after the epoch, by `TZ` or `/etc/localtime`.
/// `None` if the C library cannot say (the year does not fit).
pub fn local_offset(seconds: i64) -> Option<i64> {
    let mut fields = mem::MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are to live, aligned values for the length of the call. The function reads `TZ`,
    // and nothing in this program changes the environment once it runs.
    let result = unsafe { libc::localtime_r(&raw const seconds, fields.as_mut_ptr()) };
    if result.is_null() {
        return None;
    }
    // SAFETY: a result that is not null means that every field has been filled in.
    Some(unsafe { fields.assume_init() }.tm_gmtoff)
}

/// Whether a descriptor is open.
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD only looks at the descriptor table.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Opens `/dev/null` for each of 0, 1 and 2 that the caller left closed, so that nothing else gets these numbers.
pub fn fill_stdio() {
    for fd in 0..=2 {
        if !is_open(fd) {
            // SAFETY: a constant path; the lowest free number is the one that is missing.
            unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        }
    }
}

/// A broken pipe is an error of a write from now on, and systemd may stop a scope with SIGPIPE (part of the contract).
pub fn ignore_sigpipe() {
    // SAFETY: ignoring installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// A C string of `text`; fails on a NUL byte within.
pub fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "NUL byte in a string"))
}
