import json,textwrap
A="SCMP_ACT_ALLOW"; E="SCMP_ACT_ERRNO"
def g(comment,names,**k): return dict(comment=comment,names=sorted(set(names.split())),action=k.pop('action',A),**k)
caps=lambda *c:{"caps":["CAP_"+x for x in c]}
L=[]
L+=[
g("Contents of files","open openat openat2 creat close close_range read pread64 preadv preadv2 readv write pwrite64 pwritev pwritev2 writev lseek _llseek truncate truncate64 ftruncate ftruncate64 fallocate fadvise64 fadvise64_64 readahead sync syncfs fsync fdatasync sync_file_range sync_file_range2 copy_file_range sendfile sendfile64 splice tee vmsplice dup dup2 dup3 fcntl fcntl64 ioctl flock cachestat"),
g("Names and attributes of files","access faccessat faccessat2 stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx statfs statfs64 fstatfs fstatfs64 getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir link linkat symlink symlinkat readlink readlinkat rename renameat renameat2 unlink unlinkat mknod mknodat chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown lchown32 umask utime utimes utimensat utimensat_time64 futimesat name_to_handle_at file_getattr file_setattr getxattr lgetxattr fgetxattr getxattrat setxattr lsetxattr fsetxattr setxattrat listxattr llistxattr flistxattr listxattrat removexattr lremovexattr fremovexattr removexattrat"),
g("Memory","brk mmap mmap2 munmap mremap mprotect pkey_alloc pkey_free pkey_mprotect madvise mincore mlock mlock2 mlockall munlock munlockall msync mseal membarrier memfd_create memfd_secret remap_file_pages map_shadow_stack uretprobe"),
g("Processes and threads","fork vfork execve execveat exit exit_group wait4 waitid waitpid getpid getppid gettid getpgid getpgrp setpgid getsid setsid kill tkill tgkill pidfd_open pidfd_send_signal set_tid_address prctl rseq rseq_slice_yield set_robust_list get_robust_list futex futex_time64 futex_wait futex_waitv futex_wake futex_requeue getcpu times getrusage prlimit64 process_mrelease getrlimit ugetrlimit setrlimit getpriority setpriority nice ioprio_get ioprio_set sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield restart_syscall set_thread_area get_thread_area"),
g("Looking at other processes, which the kernel allows for one's own since 4.8","kcmp process_vm_readv process_vm_writev ptrace",includes={"minKernel":"4.8"}),
g("Users, groups, capabilities and giving up rights","getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 getresgid getresgid32 getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32 setregid setregid32 setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid setfsgid32 setgroups setgroups32 capget capset seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self lsm_get_self_attr lsm_list_modules"),
g("Signals","rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigaction signal sigpending sigprocmask sigreturn sigsuspend signalfd signalfd4 pause"),
g("Time and timers; setting a clock needs a capability, also where the call is allowed","clock_gettime clock_gettime64 clock_getres clock_getres_time64 clock_nanosleep clock_nanosleep_time64 clock_adjtime clock_adjtime64 adjtimex nanosleep gettimeofday time alarm getitimer setitimer timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64"),
g("Waiting for events","select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2 inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark"),
g("Pipes and sockets","pipe pipe2 socketpair bind listen accept accept4 connect getsockname getpeername getsockopt setsockopt send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64 shutdown socketcall"),
g("Every family of sockets but AF_VSOCK, which leads past the network to the hypervisor","socket",args=[dict(index=0,value=40,op="SCMP_CMP_NE")]),
g("AF_VSOCK","socket",action=E,errnoRet=1,args=[dict(index=0,value=40,op="SCMP_CMP_EQ")]),
g("Messages, semaphores and shared memory","ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink"),
g("Asynchronous reading and writing, the old kind","io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64"),
g("The system","uname sysinfo getrandom"),
]
for v,c in [(0,"Linux"),(8,"UNAME26... of 32 bits"),(0x20000,""),(0x20008,""),(0xffffffff,"")]:
    L.append(g({0:"Personalities: Linux",8:"Personalities: Linux of 32 bits",0x20000:"Personalities: with the version shown as 2.6",0x20008:"Personalities: both",0xffffffff:"Personalities: asking for the present one"}[v],"personality",args=[dict(index=0,value=v,op="SCMP_CMP_EQ")]))
NEW=0x7E020000
for idx,filt in ((0,lambda d:dict(excludes={**d,"arches":["s390","s390x"]})),(1,lambda d:dict(includes={"arches":["s390","s390x"]},excludes=d))):
    tail="" if idx==0 else " (flags are the second argument here)"
    L.append(g("New processes and threads in the same namespaces"+tail,"clone",args=[dict(index=idx,value=NEW,valueTwo=0,op="SCMP_CMP_MASKED_EQ")],**filt(caps("SYS_ADMIN"))))
    for bit,n in ((0x20000,"mount"),(0x2000000,"cgroup"),(0x4000000,"UTS"),(0x8000000,"IPC"),(0x10000000,"user"),(0x20000000,"pid"),(0x40000000,"network")):
        L.append(g(f"A new {n} namespace"+tail,"clone",action=E,errnoRet=1,args=[dict(index=idx,value=bit,valueTwo=bit,op="SCMP_CMP_MASKED_EQ")],**filt(caps("SYS_ADMIN"))))
L.append(g("Flags in memory cannot be looked at: as if the kernel had no such call, so that libraries use clone","clone3",action=E,errnoRet=38,excludes=caps("SYS_ADMIN")))
L+=[
g("Of x86","arch_prctl modify_ldt",includes={"arches":["amd64","x32","x86"]}),
g("Of ARM","arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls",includes={"arches":["arm","arm64"]}),
g("Of PowerPC","swapcontext",includes={"arches":["ppc64le"]}),
g("Of RISC-V","riscv_flush_icache riscv_hwprobe",includes={"arches":["riscv64"]}),
g("Of s390","s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr",includes={"arches":["s390","s390x"]}),
]
groups=[("Files by handle",["DAC_READ_SEARCH"],"open_by_handle_at"),
("Namespaces, mounts and quotas",["SYS_ADMIN"],"fanotify_init fsconfig fsmount fsopen fspick listmount listns lookup_dcookie mount mount_setattr move_mount open_tree open_tree_attr quotactl quotactl_fd setdomainname sethostname setns statmount umount umount2 unshare"),
("Restarting the machine",["SYS_BOOT"],"reboot"),
("Another root directory",["SYS_CHROOT"],"chroot"),
("Kernel modules",["SYS_MODULE"],"delete_module finit_module init_module"),
("Accounting",["SYS_PACCT"],"acct"),
("Hands in other processes",["SYS_PTRACE"],"pidfd_getfd process_madvise"),
("Ports",["SYS_RAWIO"],"ioperm iopl"),
("Setting the clock",["SYS_TIME"],"clock_settime clock_settime64 settimeofday stime"),
("Hanging up terminals",["SYS_TTY_CONFIG"],"vhangup"),
("Where memory is",["SYS_NICE"],"get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node"),
("The kernel's messages",["SYSLOG","SYS_ADMIN"],"syslog"),
("Programs in the kernel",["BPF","SYS_ADMIN"],"bpf"),
("Performance counters",["PERFMON","SYS_ADMIN"],"perf_event_open")]
for c,cs,n in groups:
    for cap in cs: L.append(g(c,n,includes=caps(cap)))
    L.append(g(c+": known, and not allowed",n,action=E,errnoRet=1,excludes=caps(*cs)))
L.append(g("Every kind of new process","clone clone3",includes=caps("SYS_ADMIN")))
L.append(g("What no namespace parts (keys, swap, other kernels), and rings, which no filter sees into","add_key io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load keyctl pivot_root request_key swapoff swapon userfaultfd lsm_set_self_attr",action=E,errnoRet=1))
arch=[("X86_64",["X86","X32"]),("AARCH64",["ARM"]),("PPC64LE",[]),("S390X",["S390"]),("RISCV64",[])]
def obj(o): return json.dumps(o)
out=['{','  "defaultAction": "SCMP_ACT_ERRNO",','  "defaultErrnoRet": 38,','  "archMap": [']
out.append(',\n'.join('    '+obj({"architecture":"SCMP_ARCH_"+a,"subArchitectures":["SCMP_ARCH_"+s for s in b]}) for a,b in arch))
out+=['  ],','  "syscalls": [']
es=[]
for e in L:
    lines=['    {','      "comment": '+obj(e["comment"])+',']
    n=', '.join(obj(x) for x in e["names"])
    one='      "names": ['+n+'],'
    if len(one)<=116: lines.append(one)
    else:
        lines.append('      "names": [')
        lines+=textwrap.wrap(n,width=116,initial_indent='        ',subsequent_indent='        ',break_long_words=False,break_on_hyphens=False)
        lines.append('      ],')
    rest=[f'      "{k}": {obj(e[k])}' for k in ("action","errnoRet","args","includes","excludes") if k in e]
    lines.append(',\n'.join(rest)); lines.append('    }'); es.append('\n'.join(lines))
out.append(',\n'.join(es)); out+=['  ]','}']
open('seccomp.json','w').write('\n'.join(out)+'\n')
json.load(open('seccomp.json'))
allowed=set(); known=set()
for e in L: known|=set(e["names"])
import re
for h in ('/usr/include/x86_64-linux-gnu/asm/unistd_64.h','/usr/include/x86_64-linux-gnu/asm/unistd_32.h','/usr/include/asm-generic/unistd.h'):
    try: t=open(h).read()
    except Exception as x: print(x); continue
    names=set(re.findall(r'#define __NR(?:3264)?_(\w+)\s+\S',t))
    print(h,len(names),'missing',sorted(names-known))
    if '64.h' in h: all64=names
    if '32.h' in h: print('not in tables',sorted(known-names-all64))
