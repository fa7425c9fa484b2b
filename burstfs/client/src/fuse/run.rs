//! Running operations: at once on the session's thread where nothing has to be waited for, else on the runtime.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Bulk memory is counted in units of this, so that the count fits a semaphore.
const UNIT_BYTES: usize = 4096;

/// Operations at a time that may wait for as long as they like.
const WAITS_MAX: u32 = 65_536;

/// Runs operations and bounds those under way.
pub(super) struct Runner {
    runtime: Handle,
    operations_max: u32,
    operations: Arc<Semaphore>,
    units_max: u32,
    units: Arc<Semaphore>,
    waits: Arc<Semaphore>,
}

/// The place of an operation that may wait for as long as it likes.
pub(super) struct WaitPlace(
    #[allow(dead_code, reason = "it is held, and given back when dropped")] OwnedSemaphorePermit,
);

/// The bulk memory of one operation.
pub(super) struct BulkPermit(
    #[allow(dead_code, reason = "it is held, and given back when dropped")] Option<OwnedSemaphorePermit>,
);

impl Runner {
    pub(super) fn new(runtime: Handle, operations_max: u32, bulk_bytes_max: usize) -> Runner {
        let units_max = u32::try_from(bulk_bytes_max / UNIT_BYTES).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        let operations_max = operations_max.clamp(1, 1 << 28);
        Runner {
            runtime,
            operations_max,
            operations: Arc::new(Semaphore::new(operations_max as usize)),
            units_max,
            units: Arc::new(Semaphore::new(units_max as usize)),
            waits: Arc::new(Semaphore::new(WAITS_MAX as usize)),
        }
    }

    /// Runs `operation`, here if it is ready at its first poll. At the bound on operations under way the session's
    /// thread waits: what it does not read stays with the kernel.
    pub(super) fn run(&self, operation: impl Future<Output = ()> + Send + 'static) {
        let mut operation: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(operation);
        let _in_runtime = self.runtime.enter();
        if poll_once(operation.as_mut()).is_ready() {
            return;
        }
        // Its first poll may have given it what others wait for, so it goes on before there is a place for it: the bound
        // is passed by one operation for each session thread. The task polls it at once, so no wake-up is lost.
        let (place, its_place) = oneshot::channel();
        self.runtime.spawn(async move {
            operation.await;
            drop(its_place.await);
        });
        // Fails only if the task is gone, with the runtime.
        let _ = place.send(self.acquire(&self.operations, 1));
    }

    /// A place for an operation that waits for other processes: it takes none of those that wait for other nodes only, which
    /// processes could otherwise fill by waiting for one another. `None` when too many wait.
    pub(super) fn wait_place(&self) -> Option<WaitPlace> {
        Arc::clone(&self.waits).try_acquire_owned().ok().map(WaitPlace)
    }

    /// Runs `operation` as [`Runner::run`] does, in a place that it has already.
    pub(super) fn run_in(&self, place: WaitPlace, operation: impl Future<Output = ()> + Send + 'static) {
        let mut operation: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(operation);
        let _in_runtime = self.runtime.enter();
        if poll_once(operation.as_mut()).is_pending() {
            self.runtime.spawn(async move {
                operation.await;
                drop(place);
            });
        }
    }

    /// Runs an operation that borrows from the session's thread, to its end.
    pub(super) fn run_here<T>(&self, operation: impl Future<Output = T>) -> T {
        let mut operation = pin!(operation);
        let polled = {
            let _in_runtime = self.runtime.enter();
            poll_once(operation.as_mut())
        };
        match polled {
            Poll::Ready(output) => output,
            Poll::Pending => self.runtime.block_on(operation),
        }
    }

    /// Waits until `bytes` more of bulk memory may be taken for an operation under way.
    pub(super) fn bulk(&self, bytes: usize) -> BulkPermit {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(self.units_max);
        BulkPermit(self.acquire(&self.units, units))
    }

    fn acquire(&self, semaphore: &Arc<Semaphore>, permits: u32) -> Option<OwnedSemaphorePermit> {
        // Neither semaphore is ever closed; without a permit the operation would only be unbounded.
        match Arc::clone(semaphore).try_acquire_many_owned(permits) {
            Ok(permit) => Some(permit),
            Err(_) => self.runtime.block_on(Arc::clone(semaphore).acquire_many_owned(permits)).ok(),
        }
    }

    /// Waits until no operation is under way.
    pub(super) async fn idle(&self) {
        // Each fails only for a closed semaphore, and then nothing holds a permit.
        let _ = self.operations.acquire_many(self.operations_max).await;
        let _ = self.waits.acquire_many(WAITS_MAX).await;
    }
}

fn poll_once<F: Future + ?Sized>(operation: Pin<&mut F>) -> Poll<F::Output> {
    operation.poll(&mut Context::from_waker(Waker::noop()))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_is_ready_runs_on_the_calling_thread() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let runner = Runner::new(runtime.handle().clone(), 4, 1 << 20);
        let (ran, has_run) = mpsc::channel();
        runner.run(async move { ran.send(std::thread::current().id()).unwrap() });
        assert_eq!(has_run.recv().unwrap(), std::thread::current().id());
    }

    #[test]
    fn what_waits_goes_on_in_the_runtime_and_is_waited_for() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let runner = Runner::new(runtime.handle().clone(), 4, 1 << 20);
        let (go, gate) = oneshot::channel::<()>();
        let (ran, has_run) = mpsc::channel();
        runner.run(async move {
            gate.await.unwrap();
            ran.send(()).unwrap();
        });
        assert!(has_run.try_recv().is_err());
        go.send(()).unwrap();
        runtime.block_on(runner.idle());
        has_run.try_recv().unwrap();
    }

    #[test]
    fn at_the_bound_the_thread_waits_and_what_is_under_way_does_not() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let runner = Runner::new(runtime.handle().clone(), 1, 1 << 20);
        // All want one place, which the first poll may hand to an operation that has no task yet.
        let place = Arc::new(Semaphore::new(1));
        let (ran, has_run) = mpsc::channel();
        for n in 0..100 {
            let (place, ran) = (place.clone(), ran.clone());
            runner.run(async move {
                let _place = place.acquire().await.unwrap();
                tokio::task::yield_now().await;
                ran.send(n).unwrap();
            });
        }
        runtime.block_on(runner.idle());
        assert_eq!(has_run.try_iter().count(), 100);
    }

    #[test]
    fn a_borrowing_operation_may_wait_too() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let runner = Runner::new(runtime.handle().clone(), 4, 1 << 20);
        let text = String::from("borrowed");
        let len = runner.run_here(async {
            tokio::task::yield_now().await;
            text.len()
        });
        assert_eq!(len, 8);
    }
}
