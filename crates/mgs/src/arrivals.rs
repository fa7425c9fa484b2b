//! Input that comes while the job runs: whether it is all there, and what will not come.

use burstfs_proto::mgs::{ArrivalNews, Input};
use burstfs_types::Failure;
use serde::{Deserialize, Serialize};

/// So many paths that did not come are named, and as many bytes of them; more are counted as "something".
const FAILED_MAX: usize = 10_000;
const FAILED_BYTES_MAX: usize = 256 << 10;

/// What has become of the `stage_in` directives with `when=async`. Kept with the MGS: a node 0 that is started again does not
/// bring once more what was over, since the job may have removed it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Arrivals {
    is_expected: bool,
    is_over: bool,
    is_unnamed: bool,
    failed: Vec<Vec<u8>>,
    failed_bytes: usize,
    failure: Option<Failure>,
}

impl Arrivals {
    /// There is something to come. Whether that is new.
    pub(crate) fn expect(&mut self) -> bool {
        !std::mem::replace(&mut self.is_expected, true)
    }

    /// These will not come. Whether that is new.
    pub(crate) fn add_failed(&mut self, paths: Vec<Vec<u8>>) -> bool {
        let before = (self.failed.len(), self.is_unnamed);
        for path in paths {
            let bytes = self.failed_bytes + path.len();
            if self.failed.len() < FAILED_MAX && bytes <= FAILED_BYTES_MAX {
                self.failed_bytes = bytes;
                self.failed.push(path);
            } else {
                self.is_unnamed = true;
            }
        }
        before != (self.failed.len(), self.is_unnamed)
    }

    /// All that comes is there; `failure` says why that is not all there should be. The first word stays.
    pub(crate) fn end(&mut self, failure: Option<Failure>) -> bool {
        if self.is_over {
            return false;
        }
        self.is_over = true;
        self.is_unnamed |= failure.is_some() && self.failed.is_empty();
        self.failure = failure;
        true
    }

    /// Whether all that comes is there.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Why not all has come.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    pub(crate) fn input(&self) -> Input {
        match (self.is_expected, self.is_over, &self.failure) {
            (false, ..) | (true, true, None) => Input::Complete,
            (true, false, _) => Input::Async,
            (true, true, Some(_)) => Input::Partial,
        }
    }

    /// What somebody does not know who knows of so many paths.
    pub(crate) fn news(&self, known: u64) -> Option<ArrivalNews> {
        let failed =
            usize::try_from(known).ok().and_then(|known| self.failed.get(known..)).unwrap_or_default().to_vec();
        let is_news = self.is_over || !failed.is_empty();
        is_news.then_some(ArrivalNews { failed, is_over: self.is_over, is_unnamed: self.is_unnamed })
    }
}

#[cfg(test)]
mod tests {
    use burstfs_types::Code;

    use super::*;

    #[test]
    fn what_will_not_come_is_told_once_and_the_end_to_all() {
        let mut arrivals = Arrivals::default();
        assert_eq!((arrivals.input(), arrivals.news(0)), (Input::Complete, None));
        assert!(arrivals.expect() && !arrivals.expect());
        assert_eq!(arrivals.input(), Input::Async);
        assert!(arrivals.add_failed(vec![b"/in/a".to_vec()]));
        assert_eq!(arrivals.news(0).unwrap().failed, [b"/in/a".to_vec()]);
        assert_eq!(arrivals.news(1), None);
        let failure = Failure::new(Code::StageInFailed, "a");
        assert!(arrivals.end(Some(failure.clone())) && !arrivals.end(None));
        let news = arrivals.news(1).unwrap();
        assert!(news.is_over && !news.is_unnamed && news.failed.is_empty());
        assert_eq!((arrivals.input(), arrivals.failure()), (Input::Partial, Some(&failure)));
    }

    #[test]
    fn a_failure_without_names_is_told_as_such() {
        let mut arrivals = Arrivals::default();
        arrivals.expect();
        arrivals.end(Some(Failure::new(Code::StageInFailed, "the source does not exist")));
        assert!(arrivals.news(0).unwrap().is_unnamed);
        let mut many = Arrivals::default();
        many.add_failed((0..FAILED_MAX + 1).map(|n| n.to_string().into_bytes()).collect());
        let news = many.news(0).unwrap();
        assert!(news.is_unnamed && news.failed.len() == FAILED_MAX);
    }
}
