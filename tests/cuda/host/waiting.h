// How threads wait for each other, and what is said when they wait in vain: the rest of class Scheduler.
#pragma once

#include "scheduler.h"

#include <cstring>
#include <map>
#include <string>
#include <utility>

namespace frd::cuda::host {

// ---- Waiting for others

inline void Scheduler::arrive(int id, unsigned expected, bool waits, const char* what, const Where& where) {
  Unchecked own;
  Thread& self = current();
  Barrier& barrier = self.block->barriers[static_cast<size_t>(id)];
  const Thread* first = barrier.waiting.empty() ? nullptr : barrier.waiting.front();
  if (id == 0) {
    expected = self.block->live;
    if (first &&
        (first->where.line() != where.line() || std::strcmp(first->where.file_name(), where.file_name()) != 0)) {
      throw Fault("threads of a block wait at different barriers: " + text(first->waits_at, first->where) + " and " +
                  text(what, where));
    }
  } else if (barrier.arrived != 0 && barrier.expected != expected) {
    throw Fault(text(what, where) + ": barrier " + std::to_string(id) + " expects " + std::to_string(barrier.expected) +
                " threads, not " + std::to_string(expected));
  }
  void* const phase = barrier.phases.now();
  release(phase);
  barrier.expected = expected;
  ++barrier.arrived;
  self.view.join_into(barrier.view);
  if (waits) {
    self.view = {};  // the block's has it when the barrier opens
    self.state = Thread::WAITING;
    self.waits_at = what;
    self.where = where;
    barrier.waiting.push_back(&self);
  }
  open_if_full(barrier, expected);
  if (!waits) return;
  leave(self);  // even who opened it: any of those who waited may go first
  acquire(phase);
}

inline void Scheduler::open_if_full(Barrier& barrier, unsigned expected) {
  if (barrier.arrived == 0 || barrier.arrived != expected) return;
  barrier.arrived = 0;
  barrier.phases.advance();
  const Block* joined = nullptr;
  for (Thread* thread : barrier.waiting) {
    // Of a named barrier the block's other threads see as much: kinder than a GPU, and less to keep.
    if (thread->block != joined) join(thread->block->view, barrier.view);
    joined = thread->block;
    wake(*thread);
  }
  barrier.view.clear();
  barrier.waiting.clear();
}

inline void Scheduler::arrive_at_grid_barrier(const Where& where) {
  Unchecked own;
  Thread& self = current();
  if (!launch_.cooperative) throw Fault(text("grid_sync", where) + ": the launch is not cooperative");
  void* const phase = grid_barrier_.phases.now();
  release(phase);
  join(grid_barrier_.view, self.block->view);
  self.view.join_into(grid_barrier_.view);
  self.view = {};
  self.state = Thread::WAITING;
  self.waits_at = "grid_sync";
  self.where = where;
  grid_barrier_.waiting.push_back(&self);
  ++self.block->at_grid_barrier;
  open_grid_barrier_if_full(*self.block);
  leave(self);
  acquire(phase);
}

// A block arrives when all of its threads that have not returned have; a block without any never does.
inline void Scheduler::open_grid_barrier_if_full(const Block& block) {
  if (block.live == 0 || block.at_grid_barrier != block.live) return;
  if (++grid_barrier_.arrived != blocks()) return;
  for (auto& other : resident_) other->at_grid_barrier = 0;
  open_if_full(grid_barrier_, blocks());
}

inline void Scheduler::meet(unsigned mask, const char* what, const Where& where, bool orders, void* record,
                            Meeting::Answer answer) {
  Unchecked own;
  Thread& self = current();
  Warp& warp = *self.warp;
  if (!(mask >> self.lane & 1)) {
    throw Fault(text(what, where) + ": lane " + std::to_string(self.lane) + " is not in its own mask");
  }
  size_t i = 0;
  while (i < warp.meetings.size() && warp.meetings[i].mask != mask) ++i;
  if (i == warp.meetings.size()) {
    warp.meetings.push_back({mask, what, where, answer, orders ? warp.phases.now() : nullptr});
    if (orders) warp.phases.advance();
  }
  Meeting& meeting = warp.meetings[i];
  if (std::strcmp(meeting.what, what) != 0 || (!orders && meeting.where.line() != where.line())) {
    throw Fault("lanes of a warp meet in different calls: " + text(meeting.what, meeting.where) + " and " +
                text(what, where));
  }
  void* const order = meeting.order;
  if (order) release(order);
  meeting.arrived |= 1u << self.lane;
  meeting.records[self.lane] = record;
  self.state = Thread::WAITING;
  self.waits_at = what;
  self.where = where;
  answer_if_full(warp, i);
  leave(self);
  if (order) acquire(order);
}

inline void Scheduler::answer_if_full(Warp& warp, size_t i) {
  const unsigned missing = warp.meetings[i].mask & warp.live & ~warp.meetings[i].arrived;
  if (missing) return;
  const Meeting meeting = warp.meetings[i];
  std::swap(warp.meetings[i], warp.meetings.back());
  warp.meetings.pop_back();
  meeting.answer(meeting.records, meeting.arrived);
  for (unsigned lane = 0; lane < WARP; ++lane) {
    if (meeting.arrived >> lane & 1) wake(warp.threads[lane]);
  }
}

// ---- Failure

inline void Scheduler::fail(std::exception_ptr why) {
  if (failure_) return;
  failure_ = std::move(why);
  for (auto& block : resident_) {
    if (!block) continue;
    for (Thread& thread : block->threads) {
      if (thread.state == Thread::WAITING) wake(thread);
    }
  }
}

// A fault with the thread that it happened in. Other exceptions are the kernel's own and stay as they are.
inline std::exception_ptr Scheduler::with_thread(std::exception_ptr why, const Thread& thread) const {
  try {
    std::rethrow_exception(why);
  } catch (const Fault& fault) {
    return std::make_exception_ptr(Fault(in_kernel() + ", block " + text(thread.block->index) + ", thread " +
                                         text(thread.index) + ": " + fault.what()));
  } catch (...) {
    return why;
  }
}

inline std::string Scheduler::deadlock() const {
  constexpr size_t SHOWN = 4;
  std::string report = "deadlock in " + in_kernel() + ":";
  for (size_t i = 0; i < resident_.size() && i < SHOWN; ++i) {
    const Block& block = *resident_[i];
    struct Group {
      unsigned count = 0;
      uint3 first{};
    };
    std::map<std::string, Group> groups;
    for (const Thread& thread : block.threads) {
      const std::string place =
          thread.state == Thread::FINISHED ? "have returned" : "wait at " + text(thread.waits_at, thread.where);
      Group& group = groups[place];
      if (group.count++ == 0) group.first = thread.index;
    }
    report += " block " + text(block.index) + ":";
    for (const auto& [place, group] : groups) {
      report += " " + std::to_string(group.count) + " threads from " + text(group.first) + " " + place + ";";
    }
  }
  if (resident_.size() > SHOWN) report += " and " + std::to_string(resident_.size() - SHOWN) + " more blocks;";
  if (launch_.cooperative) {
    report += " " + std::to_string(grid_barrier_.arrived) + " of " + std::to_string(blocks()) +
              " blocks are at the grid's barrier;";
  }
  report.back() = '.';
  return report;
}

}  // namespace frd::cuda::host
