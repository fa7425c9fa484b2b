//! How one waits for memory that others give back.

use crate::sync::Notify;

/// What `take` finds, at once or when it finds something: it is asked again whenever `returned` has told all who wait. What comes back
/// between a look and the wait is not missed, since the wait begins before the look.
pub(crate) async fn taken<T>(returned: &Notify, mut take: impl FnMut() -> Option<T>) -> T {
    loop {
        let told = returned.notified();
        if let Some(found) = take() {
            return found;
        }
        told.await;
    }
}
