import json,sys
caps=set(sys.argv[1].split(',')); p=json.load(open('seccomp.json'))
def ok(e):
    i,x=e.get('includes') or {},e.get('excludes') or {}
    if i.get('caps') and not set(i['caps'])<=caps: return False
    if i.get('arches') and 'amd64' not in i['arches']: return False
    if set(x.get('caps',()))&caps or 'amd64' in x.get('arches',()): return False
    return True
keep=('names','action','errnoRet','args')
json.dump({'defaultAction':p['defaultAction'],'defaultErrnoRet':p['defaultErrnoRet'],'architectures':['SCMP_ARCH_X86_64','SCMP_ARCH_X86','SCMP_ARCH_X32'],'syscalls':[{k:e[k] for k in keep if k in e} for e in p['syscalls'] if ok(e)]},sys.stdout)
