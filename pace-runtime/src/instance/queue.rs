//! [`WorkQueue`]: what several workers take from, and what a dead one leaves goes back to.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Items with their numbers, oldest first.
#[derive(Debug)]
pub struct WorkQueue<T> {
    items: Mutex<VecDeque<(usize, T)>>,
}

impl<T> WorkQueue<T> {
    /// Numbers `items` from 0.
    pub fn new(items: Vec<T>) -> Self {
        Self { items: Mutex::new(items.into_iter().enumerate().collect()) }
    }

    /// The oldest item; none if nobody has put any back.
    pub fn take(&self) -> Option<(usize, T)> {
        self.items().pop_front()
    }

    /// Puts an item back that was taken and not done: it is older than all that wait.
    pub fn put_back(&self, index: usize, item: T) {
        self.items().push_front((index, item));
    }

    /// Items that wait.
    pub fn len(&self) -> usize {
        self.items().len()
    }

    /// Whether no item waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops all that wait.
    pub fn clear(&self) {
        self.items().clear();
    }

    fn items(&self) -> MutexGuard<'_, VecDeque<(usize, T)>> {
        // The list is whole at every moment.
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
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
}
