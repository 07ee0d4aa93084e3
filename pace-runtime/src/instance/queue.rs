//! [`WorkQueue`]: what several workers take from, and what a dead one leaves goes back to.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Items with their numbers, oldest first. It is empty for good once every item that was taken is done.
#[derive(Debug)]
pub struct WorkQueue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<(usize, T)>,
    /// Items that were taken and are neither done nor back.
    taken: usize,
}

impl<T> State<T> {
    fn take(&mut self) -> Option<(usize, T)> {
        let item = self.items.pop_front()?;
        self.taken += 1;
        Some(item)
    }
}

impl<T> WorkQueue<T> {
    /// Numbers `items` from 0.
    pub fn new(items: Vec<T>) -> Self {
        let items = items.into_iter().enumerate().collect();
        Self { state: Mutex::new(State { items, taken: 0 }), changed: Condvar::new() }
    }

    /// The oldest item, if one waits.
    pub fn take(&self) -> Option<(usize, T)> {
        self.state().take()
    }

    /// The oldest item, for which it waits while others may still put one back; none once all is done.
    pub fn take_or_wait(&self) -> Option<(usize, T)> {
        let nothing = |state: &mut State<T>| state.items.is_empty() && state.taken > 0;
        let state = self.changed.wait_while(self.state(), nothing);
        state.unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Puts an item back that was taken and not done: it is older than all that wait.
    pub fn put_back(&self, index: usize, item: T) {
        let mut state = self.state();
        state.items.push_front((index, item));
        state.taken -= 1;
        self.changed.notify_all();
    }

    /// Says that an item that was taken is done.
    pub fn done(&self) {
        self.state().taken -= 1;
        self.changed.notify_all();
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.state().items.len()
    }

    /// Whether no item waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops all that wait.
    pub fn clear(&self) {
        self.state().items.clear();
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        // The list is whole at every moment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_taken_first() {
        let queue = WorkQueue::new(vec!['a', 'b', 'c']);
        let (index, item) = queue.take().unwrap();
        assert_eq!((index, item), (0, 'a'));
        queue.put_back(index, item);
        assert_eq!(queue.len(), 3);
        assert_eq!([queue.take(), queue.take()], [Some((0, 'a')), Some((1, 'b'))]);
        queue.clear();
        assert!(queue.is_empty() && queue.take().is_none());
    }

    #[test]
    fn a_worker_without_work_waits_for_what_another_leaves() {
        let queue = WorkQueue::new(vec!['a']);
        let (index, item) = queue.take_or_wait().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let got = queue.take_or_wait();
                queue.done();
                (got, queue.take_or_wait())
            });
            queue.put_back(index, item);
            assert_eq!(waiting.join().unwrap(), (Some((0, 'a')), None));
        });
        assert_eq!(queue.take_or_wait(), None, "all is done");
    }
}
