//! Runs the service's futures on the monitor's own loop: no thread, no waiting.
//!
//! A task is polled when its waker was called. Wakers must be `Send`, hence the lock, which nobody ever contends for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// All tasks.
#[derive(Default)]
pub struct Executor {
    tasks: BTreeMap<u64, (Task, Waker)>,
    next: u64,
    woken: Arc<Woken>,
    spawner: Spawner,
}

/// Takes new tasks, from within tasks as well.
#[derive(Clone, Default)]
pub struct Spawner(Rc<RefCell<Vec<Task>>>);

/// Tasks to be polled.
#[derive(Default)]
struct Woken(Mutex<Vec<u64>>);

struct Bell {
    task: u64,
    woken: Arc<Woken>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut woken = self.woken.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !woken.contains(&self.task) {
            woken.push(self.task);
        }
    }
}

impl Spawner {
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.borrow_mut().push(Box::pin(task));
    }
}

impl Executor {
    pub fn spawner(&self) -> &Spawner {
        &self.spawner
    }

    /// True if there is something to poll.
    pub fn is_awake(&self) -> bool {
        !self.spawner.0.borrow().is_empty() || !self.woken.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Polls every task that was woken, once; what wakes up meanwhile comes with the next call.
    pub fn run(&mut self) {
        let mut woken = std::mem::take(&mut *self.woken.0.lock().unwrap_or_else(PoisonError::into_inner));
        let fresh = std::mem::take(&mut *self.spawner.0.borrow_mut());
        for task in fresh {
            let bell = Arc::new(Bell { task: self.next, woken: Arc::clone(&self.woken) });
            self.tasks.insert(self.next, (task, Waker::from(bell)));
            woken.push(self.next);
            self.next += 1;
        }
        for id in woken {
            // Taken out, so that a task may end others by dropping what they wait for.
            let Some((mut task, waker)) = self.tasks.remove(&id) else { continue };
            if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                self.tasks.insert(id, (task, waker));
            }
        }
    }
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Executor({} tasks)", self.tasks.len())
    }
}

impl std::fmt::Debug for Spawner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spawner")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::task::Poll;

    #[test]
    fn tasks_run_when_they_are_woken_and_only_then() {
        let mut executor = Executor::default();
        let polls = Rc::new(Cell::new(0));
        let waker = Rc::new(RefCell::new(None));
        let (count, slot) = (Rc::clone(&polls), Rc::clone(&waker));
        executor.spawner().spawn(std::future::poll_fn(move |context| {
            count.set(count.get() + 1);
            *slot.borrow_mut() = Some(context.waker().clone());
            if count.get() < 3 { Poll::Pending } else { Poll::Ready(()) }
        }));
        assert!(executor.is_awake());
        executor.run();
        assert!(!executor.is_awake());
        executor.run();
        assert_eq!(polls.get(), 1);
        for _ in 0..2 {
            let bell: Waker = waker.borrow().clone().unwrap();
            bell.wake_by_ref();
            bell.wake();
            executor.run();
        }
        assert_eq!((polls.get(), executor.tasks.len()), (3, 0));
        waker.borrow().clone().unwrap().wake();
        executor.run();
        assert_eq!(polls.get(), 3);
    }

    #[test]
    fn a_task_may_start_another() {
        let mut executor = Executor::default();
        let done = Rc::new(Cell::new(false));
        let (spawner, inner) = (executor.spawner().clone(), Rc::clone(&done));
        executor.spawner().spawn(async move { spawner.spawn(async move { inner.set(true) }) });
        executor.run();
        assert!(executor.is_awake());
        executor.run();
        assert!(done.get());
    }
}
