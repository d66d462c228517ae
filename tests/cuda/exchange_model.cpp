// Walks through every execution of an exchange between a few blocks for a few steps:
//
//     exchange_model OPTION=VALUE ...
//
// prints "right STATES" or "wrong STATES WHY". tools/check_exchange.py builds it and knows the cases.
//
// What is executed is the protocol of csrc/cuda/exchange.h with the numbers of csrc/cuda/ring.h, on a memory that is as
// unkind as PTX's model lets it be:
// - Of each word there is a history, one order for all (coherence). A relaxed load returns any entry that is not older
//   than what the reader must have seen; so stores come into sight arbitrarily late, to each reader at another time,
//   and in any order across words.
// - What a reader must have seen of a word: what it has read or written there itself, and, by acquiring what others
//   released, all that they had seen or written by then (causality).
// - A store waits for the loads that it depends on, and for nothing else. With depends=0 it waits for none: it may be
//   made any number of steps ahead, as far as the protocol's own acquires let it.
// A block is one reader: its threads are joined by a barrier in each step, and none of them reads a word twice between.
//
// By default a poll that fails is not a step of an execution. It only ever makes the reader see newer entries, so that
// it must see newer ones later: whatever can follow it can follow without it, but for one thing, that the right entry
// is passed over. So it counts as a fault at once if a newer entry than the right one can be read while that is still
// waited for. Likewise a block adds to a counter as soon as it may, and looks at one as late as it may: otherwise
// others, or itself, would only have to have seen more. polls=1 walks through all of that as well, and must come to the
// same verdict.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <ranges>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <vector>

#include "cuda/ring.h"

namespace {

using Byte = uint8_t;

struct Row {  // takes part in steps first .. last of its group
  int first, last;
};

// The numbers of an exchange, right or with a fault.
struct Numbers {
  int slots;
  std::function<int(int)> slot;
  std::function<unsigned(int)> stamp;  // what a word of a step shows
  std::function<int(int)> counter_after, counter_before;
};

struct Case {
  bool flags = false;  // data and a flag for each producer; otherwise words that show their step
  bool strict = true;  // the ring's handshake
  int slots = 2;
  std::string shows = "phase";
  int blocks = 2, calls = 1, steps = 6, words = 1;
  std::vector<Row> rows;
  bool depends = true;      // a store waits for all words of its row
  bool reads_last = false;  // the last step is read as well, as in backward
  int left_by = 0;          // memory holds what a call of so many steps left
  bool polls = false;
  // Faults
  std::string accepts = "each";  // first: one word is taken for its neighbours; any: a poll that does not look
  std::string skips = "none";    // third: every third step, by block 0; round: steps 5 to 8, by block 0
  std::string counter = "each";  // none, running: one for all rounds, early: the one before
  std::string flag = "last";     // first: before the data; relaxed: never acquired; early: before the own reads
  bool remembers = true;         // otherwise each step's words are read by other threads, with no barrier between
  bool by_group = false;         // rows count the group's steps instead of their own
  int early = -1;                // this block's stores wait for nothing
  int absent = 0;                // so many blocks never begin
};

template <int S>
Numbers numbers_of() {
  using Steps = frd::cuda::RingSteps<S>;
  return {S, [](int t) { return Steps::slot(t); }, [](int t) { return Steps::phase(t); },
          [](int t) { return static_cast<int>(Steps::counter_after(t)); },
          [](int t) { return static_cast<int>(Steps::counter_before(t)); }};
}

Numbers numbers_of(const Case& c) {
  Numbers n = c.slots == 8 ? numbers_of<8>() : c.slots == 4 ? numbers_of<4>() : numbers_of<2>();
  if (c.slots == 1) {
    n.slots = 1;
    n.slot = [](int) { return 0; };
    n.stamp = [](int t) { return static_cast<unsigned>(t & 1); };
  }
  if (c.shows == "tag") n.stamp = [](int t) { return frd::cuda::tag(t); };
  if (c.shows == "nothing") n.stamp = [](int) { return 0u; };
  if (c.shows == "parity") n.stamp = [](int t) { return static_cast<unsigned>(t & 1); };
  if (c.shows == "zero first") n.stamp = [phase = n.stamp](int t) { return phase(t) ^ 1; };
  if (c.counter == "early")
    n.counter_before = [before = n.counter_before](int t) { return std::max(0, before(t) - 1); };
  if (!c.strict || c.counter == "none") n.counter_after = n.counter_before = [](int) { return 0; };
  return n;
}

// --------------------------------------------------------------------------------------------------------------------
// A state, as bytes
// --------------------------------------------------------------------------------------------------------------------

// Where everything is in a state. An entry of a history is a step, with bit 7 for the second call; entry 0 is what was
// there before.
struct Layout {
  const Case& c;
  const Numbers& n;
  int agents, rows, addresses, entries, counters, flag_entries;
  int of_agent, at_agents, at_lengths, at_entries, at_views, at_counts, at_released, at_flags, bytes;

  Layout(const Case& c, const Numbers& n) : c(c), n(n) {
    agents = c.blocks * c.calls;
    rows = static_cast<int>(c.rows.size());
    addresses = c.blocks * rows * c.words * n.slots;
    entries = 1 + c.calls * ((c.steps - 1) / n.slots + 1);
    counters = c.flags || !c.strict ? 0 : c.steps + 2;
    flag_entries = c.flags ? c.steps + 1 : 0;
    of_agent = 8 + (c.flags ? c.blocks : 0);
    at_agents = 0;
    at_lengths = at_agents + agents * of_agent;
    at_entries = at_lengths + addresses;
    at_views = at_entries + addresses * entries;
    at_counts = at_views + agents * addresses;
    at_released = at_counts + counters;
    at_flags = at_released + counters * addresses;
    bytes = at_flags + c.blocks * flag_entries * addresses;
    if (c.blocks * rows * c.words > 16 || rows * c.words > 8 || c.steps > 100) throw std::invalid_argument("too large");
  }
};

class State {
 public:
  explicit State(const Layout& l) : l_(&l), bytes_(static_cast<size_t>(l.bytes)) {
    for (int a = 0; a < l.agents; ++a) step(a) = 1;
    for (int i = 0; i < l.addresses; ++i) length(i) = 1;
  }

  // Of an agent: the step that it computes, which words of the step before it has, the last step of which it has stored
  // all words, which of the next it has stored, counters it has looked at and added to, flags it has seen and set.
  Byte& step(int a) { return agent(a, 0); }
  Byte& read_low(int a) { return agent(a, 1); }
  Byte& read_high(int a) { return agent(a, 2); }
  Byte& published(int a) { return agent(a, 3); }
  Byte& stored(int a) { return agent(a, 4); }
  Byte& looked(int a) { return agent(a, 5); }
  Byte& added(int a) {
    return agent(a, 6);
  }  // whether it did after the step that it reads; flags: the last that it set
  Byte& ready(int a) { return agent(a, 7); }  // flags: of which blocks it has the flag of the step before
  Byte& flag_view(int a, int b) { return agent(a, 8 + b); }
  unsigned read(int a) { return read_low(a) | static_cast<unsigned>(read_high(a)) << 8; }
  void add_read(int a, int x) { (x < 8 ? read_low(a) : read_high(a)) |= static_cast<Byte>(1u << x % 8); }

  Byte& length(int address) { return at(l_->at_lengths + address); }
  Byte& entry(int address, int i) { return at(l_->at_entries + address * l_->entries + i); }
  Byte& view(int a, int address) { return at(l_->at_views + a * l_->addresses + address); }
  Byte& count(int k) { return at(l_->at_counts + k); }
  Byte* released(int k) { return &at(l_->at_released + k * l_->addresses); }                           // of addresses
  Byte* flag(int b, int i) { return &at(l_->at_flags + (b * l_->flag_entries + i) * l_->addresses); }  // the same

  void see(int a, const Byte* what) {
    for (int i = 0; i < l_->addresses; ++i) view(a, i) = std::max(view(a, i), what[i]);
  }
  void show(int a, Byte* to) {
    for (int i = 0; i < l_->addresses; ++i) to[i] = std::max(to[i], view(a, i));
  }

  const std::vector<Byte>& bytes() const { return bytes_; }

 private:
  Byte& at(int i) { return bytes_[static_cast<size_t>(i)]; }
  Byte& agent(int a, int i) { return at(l_->at_agents + a * l_->of_agent + i); }

  const Layout* l_;
  std::vector<Byte> bytes_;
};

// States that were met, by 128 bits of hash each.
class Met {
 public:
  bool add(const std::vector<Byte>& bytes) {
    Key key{0x9E3779B97F4A7C15u, 0xC2B2AE3D27D4EB4Fu};
    uint64_t word = 0;
    for (size_t i = 0; i < bytes.size(); ++i) {
      word = word << 8 | bytes[i];
      if (i % 8 == 7 || i + 1 == bytes.size()) {
        key.a = mix(key.a ^ word, 0xBF58476D1CE4E5B9u);
        key.b = mix(key.b + word, 0x94D049BB133111EBu);
      }
    }
    return seen_.insert(key).second;
  }
  size_t size() const { return seen_.size(); }

 private:
  struct Key {
    uint64_t a, b;
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    size_t operator()(const Key& key) const { return key.a; }
  };
  static uint64_t mix(uint64_t x, uint64_t by) {
    x = (x ^ (x >> 32)) * by;
    return x ^ (x >> 29);
  }
  std::unordered_set<Key, Hash> seen_;
};

// --------------------------------------------------------------------------------------------------------------------
// Executions
// --------------------------------------------------------------------------------------------------------------------

struct Wrong : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Walk {
 public:
  explicit Walk(const Case& c) : c_(c), n_(numbers_of(c)), l_(c_, n_) {}

  size_t states() const { return met_.size(); }

  void run() {
    State start(l_);
    if (c_.left_by)
      for (int k = 1; k < l_.counters; ++k) start.count(k) = static_cast<Byte>(c_.blocks);
    add(start);
    while (!todo_.empty()) {
      State state = todo_.back();
      todo_.pop_back();
      const size_t before = moves_;
      for (int a = 0; a < l_.agents - c_.absent; ++a) expand(state, a);
      if (moves_ != before) continue;
      for (int a = 0; a < l_.agents; ++a)
        if (state.step(a) <= last_step())
          throw Wrong("block " + std::to_string(a) + " waits in step " + std::to_string(state.step(a)) + " for ever");
    }
  }

 private:
  int last_step() const { return c_.steps + (c_.reads_last ? 1 : 0); }
  int call_of(int a) const { return a / c_.blocks; }
  int own(int row, int step) const { return c_.by_group ? step : step - c_.rows[static_cast<size_t>(row)].first + 1; }
  bool active(int row, int step) const {
    const Row& r = c_.rows[static_cast<size_t>(row)];
    return r.first <= step && step <= r.last;
  }
  int word_of(int block, int row, int word) const { return (block * l_.rows + row) * c_.words + word; }
  int address(int x, int own_step) const { return x * n_.slots + n_.slot(own_step); }

  // Words of step - 1 that are read for `step`, of one row or of all.
  unsigned needed(int a, int step, int only_row = -1) const {
    unsigned mask = 0;
    const bool skips =
        a == 0 && ((c_.skips == "third" && step % 3 == 0) || (c_.skips == "round" && step > 4 && step < 9));
    for (int block = 0; block < c_.blocks; ++block)
      for (int row = 0; row < l_.rows; ++row) {
        if (only_row >= 0 && row != only_row) continue;
        if (step == 1 || !active(row, step - 1) || !(active(row, step) || c_.reads_last)) continue;
        if (skips && block == c_.blocks - 1) continue;
        for (int word = 0; word < c_.words; ++word) mask |= 1u << word_of(block, row, word);
      }
    return mask;
  }
  unsigned own_words(int step) const {
    unsigned mask = 0;
    for (int row = 0; row < l_.rows; ++row)
      for (int word = 0; word < c_.words; ++word)
        if (active(row, step)) mask |= 1u << (row * c_.words + word);
    return mask;
  }
  bool waits(int a) const { return c_.depends && a != c_.early; }

  // What entry i of a word shows.
  unsigned shown(State& s, int address, int i) const {
    if (i > 0) return n_.stamp(s.entry(address, i) & 0x7F);
    int last = 0;  // what the call before left here
    for (int t = 1; t <= c_.left_by; ++t)
      if (n_.slot(t) == address % n_.slots) last = t;
    return last ? n_.stamp(last) : 0;
  }

  void add(State s) {
    for (int a = 0; a < l_.agents - c_.absent; ++a) {
      if (!c_.polls) add_to_counter(s, a);
      advance(s, a);
    }
    ++moves_;
    if (met_.add(s.bytes())) todo_.push_back(std::move(s));
  }

  // Goes on to the next step. That changes nothing that others see, so it is done at once.
  void advance(State& s, int a) {
    const int step = s.step(a);
    if (step > last_step() || (needed(a, step) & ~s.read(a))) return;
    if (step <= c_.steps && s.published(a) < step) return;
    if (c_.flags ? step <= c_.steps && s.added(a) < step : n_.counter_after(step - 1) && step > 1 && !s.added(a))
      return;
    s.step(a) = static_cast<Byte>(step + 1);
    s.read_low(a) = s.read_high(a) = s.ready(a) = 0;
    if (!c_.flags) s.added(a) = 0;
  }

  void expand(State& s, int a) {
    const int step = s.step(a);
    if (step > last_step()) return;
    if (c_.flags) poll_flags(s, a);
    for (unsigned rest = needed(a, step) & ~s.read(a); rest; rest &= rest - 1) read(s, a, __builtin_ctz(rest));
    if (State next = s; c_.polls && add_to_counter(next, a)) add(next);
    publish(s, a);
    if (c_.flags) set_flag(s, a);
  }

  // Polls word x of the step before.
  void read(State& s, int a, int x) {
    const int step = s.step(a) - 1, row = x / c_.words % l_.rows, block = x / (c_.words * l_.rows);
    const int own_step = own(row, step), at = address(x, own_step);
    const bool first = x % c_.words == 0;
    if (c_.flags && !(s.ready(a) >> block & 1)) return;
    if (c_.accepts == "first" && !first && !(s.read(a) >> (x - x % c_.words) & 1)) return;
    const bool looks = !c_.flags && c_.accepts != "any" && (c_.accepts == "each" || first);
    const Byte right = static_cast<Byte>(own_step | call_of(a) << 7);
    bool is_there = false;
    for (int i = s.view(a, at); i < s.length(at); ++i) {
      const bool is_right = i > 0 && s.entry(at, i) == right;
      if (!looks || shown(s, at, i) == n_.stamp(own_step)) {
        if (!is_right) throw Wrong(told(s, a, x, step, at, i));
        State next = s;
        next.add_read(a, x);
        if (c_.remembers) next.view(a, at) = static_cast<Byte>(i);
        add(next);
      } else if (c_.polls && i > s.view(a, at)) {
        State next = s;
        next.view(a, at) = static_cast<Byte>(i);
        add(next);
      } else if (!c_.polls && is_there) {
        throw Wrong("block " + std::to_string(a) + " may pass over a word of step " + std::to_string(step));
      }
      is_there |= is_right;
    }
  }

  std::string told(State& s, int a, int x, int step, int at, int i) const {
    std::ostringstream text;
    text << "block " << a << " takes for step " << step << " of word " << x << " ";
    if (i == 0) {
      text << "what memory held";
    } else {
      text << "that of the row's step " << (s.entry(at, i) & 0x7F) << (s.entry(at, i) >> 7 ? " of another call" : "");
    }
    return text.str();
  }

  // All words of step - 1 have been read: one more for the counter of that step.
  bool add_to_counter(State& s, int a) {
    const int step = s.step(a), k = step > 1 && step <= last_step() && !c_.flags ? n_.counter_after(step - 1) : 0;
    if (!k || s.added(a) || (needed(a, step) & ~s.read(a))) return false;
    s.added(a) = 1;
    const int counter = c_.counter == "running" ? 1 : k;
    ++s.count(counter);
    s.show(a, s.released(counter));
    return true;
  }

  // Thread 0 looks at the counter that must be full before `next_step` is published. False if it is not.
  bool look(State& s, int a, int next_step) {
    const int k = n_.counter_before(next_step);
    if (k <= s.looked(a)) return true;
    const int counter = c_.counter == "running" ? 1 : k, full = c_.counter == "running" ? k * c_.blocks : c_.blocks;
    if (s.count(counter) < full) return false;
    s.looked(a) = static_cast<Byte>(k);
    s.see(a, s.released(counter));
    if (counter == k && std::ranges::all_of(std::views::iota(0, l_.agents), [&](int b) { return s.looked(b) >= k; }))
      std::fill_n(s.released(k), l_.addresses, Byte{0});  // nobody will look again
    return true;
  }

  void publish(State& s, int a) {
    const int next_step = s.published(a) + 1;
    if (next_step > c_.steps) return;
    if ((waits(a) || c_.flags) && next_step != s.step(a)) return;
    const unsigned all = (1u << c_.blocks) - 1;
    if (c_.flags && next_step > 1 && s.ready(a) != all) return;
    if (c_.flags && c_.flag == "first" && s.added(a) < next_step) return;
    const unsigned mine = own_words(next_step);
    State looked = s;
    if (!look(looked, a, next_step)) return;
    if (c_.polls && looked.looked(a) != s.looked(a)) add(looked);
    if (!mine) {
      State next = looked;
      next.published(a) = static_cast<Byte>(next_step);
      add(next);
      return;
    }
    for (unsigned rest = mine & ~s.stored(a); rest; rest &= rest - 1) {
      const int i = __builtin_ctz(rest), row = i / c_.words;
      if (waits(a) && (needed(a, s.step(a), row) & ~s.read(a))) continue;
      const int own_step = own(row, next_step), at = address(word_of(a % c_.blocks, row, i % c_.words), own_step);
      State next = looked;
      next.entry(at, next.length(at)) = static_cast<Byte>(own_step | call_of(a) << 7);
      next.view(a, at) = next.length(at)++;
      next.stored(a) |= static_cast<Byte>(1u << i);
      if (next.stored(a) == mine) {
        next.stored(a) = 0;
        next.published(a) = static_cast<Byte>(next_step);
      }
      add(next);
    }
  }

  // ---- Flags. Entry t of a block's flag is the t-th that it set; the number that it holds is t, on top of what a call
  // before left.

  void poll_flags(State& s, int a) {
    const int step = s.step(a) - 1;
    if (step == 0) return;
    for (int b = 0; b < c_.blocks; ++b) {
      if (s.ready(a) >> b & 1) continue;
      for (int i = s.flag_view(a, b); i <= s.added(b); ++i) {
        const bool far = i == 0 ? c_.left_by >= step : i >= step;
        if (!far) continue;
        State next = s;
        next.ready(a) |= static_cast<Byte>(1u << b);
        next.flag_view(a, b) = static_cast<Byte>(i);
        if (c_.flag != "relaxed" && i > 0) next.see(a, next.flag(b, i));
        add(next);
        if (!c_.polls) break;  // a later flag shows more
      }
    }
  }

  void set_flag(State& s, int a) {
    const int step = s.step(a);
    if (step > c_.steps || s.added(a) >= step) return;
    if (c_.flag != "first" && s.published(a) < step) return;
    if (c_.flag == "first" && step > 1 && s.ready(a) != (1u << c_.blocks) - 1) return;
    if (c_.flag != "early" && c_.flag != "first" && (needed(a, step) & ~s.read(a))) return;
    State next = s;
    next.added(a) = static_cast<Byte>(step);
    next.show(a, next.flag(a, step));
    add(next);
  }

  const Case c_;
  const Numbers n_;
  const Layout l_;
  std::vector<State> todo_;
  Met met_;
  size_t moves_ = 0;
};

// --------------------------------------------------------------------------------------------------------------------
// Options
// --------------------------------------------------------------------------------------------------------------------

Case parse(int count, char** arguments) {
  Case c;
  std::string rows;
  const std::map<std::string, std::function<void(const std::string&)>> options = {
      {"form", [&](const std::string& v) { c.flags = v == "flags", c.strict = v == "strict"; }},
      {"slots", [&](const std::string& v) { c.slots = std::stoi(v); }},
      {"shows", [&](const std::string& v) { c.shows = v; }},
      {"blocks", [&](const std::string& v) { c.blocks = std::stoi(v); }},
      {"calls", [&](const std::string& v) { c.calls = std::stoi(v); }},
      {"steps", [&](const std::string& v) { c.steps = std::stoi(v); }},
      {"words", [&](const std::string& v) { c.words = std::stoi(v); }},
      {"rows", [&](const std::string& v) { rows = v; }},  // FIRST-LAST,...
      {"depends", [&](const std::string& v) { c.depends = v == "1"; }},
      {"reads_last", [&](const std::string& v) { c.reads_last = v == "1"; }},
      {"left_by", [&](const std::string& v) { c.left_by = std::stoi(v); }},
      {"polls", [&](const std::string& v) { c.polls = v == "1"; }},
      {"accepts", [&](const std::string& v) { c.accepts = v; }},
      {"skips", [&](const std::string& v) { c.skips = v; }},
      {"counter", [&](const std::string& v) { c.counter = v; }},
      {"flag", [&](const std::string& v) { c.flag = v; }},
      {"remembers", [&](const std::string& v) { c.remembers = v == "1"; }},
      {"by_group", [&](const std::string& v) { c.by_group = v == "1"; }},
      {"early", [&](const std::string& v) { c.early = std::stoi(v); }},
      {"absent", [&](const std::string& v) { c.absent = std::stoi(v); }},
  };
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    const size_t equals = argument.find('=');
    const auto option = options.find(argument.substr(0, equals));
    if (equals == std::string::npos || option == options.end()) throw std::invalid_argument("no option " + argument);
    option->second(argument.substr(equals + 1));
  }
  std::istringstream list(rows);
  for (std::string row; std::getline(list, row, ',');) {
    const size_t dash = row.find('-');
    c.rows.push_back({std::stoi(row.substr(0, dash)), std::stoi(row.substr(dash + 1))});
  }
  if (c.rows.empty()) c.rows.push_back({1, c.steps});
  return c;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    Walk walk(parse(count, arguments));
    try {
      walk.run();
      std::printf("right %zu\n", walk.states());
    } catch (const Wrong& wrong) {
      std::printf("wrong %zu %s\n", walk.states(), wrong.what());
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
