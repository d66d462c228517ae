// The exchange between blocks in each form, right and with a fault, for ThreadSanitizer. See races.h.
//
// Stamped words are relaxed accesses, which are no races. The words of Flags are plain: what orders them is the flag.
#include "exchange.cu"
#include "races.h"

using namespace frd::cuda;

namespace {

std::function<void()> call(const char* form, const char* word, int fault = exchange::NONE) {
  return [=] { exchange::run({form, word, 4, 64, 9, {1, 1, 4}, {9, 5, 9}, fault}); };
}

}  // namespace

int main(int count, char** arguments) {
  return races::main(count, arguments,
                     {
                         {"strict ring", false, call("strict4", "phased")},
                         {"two slots by dependence", false, call("dependence", "tagged")},
                         {"flags", false, call("flags", "plain")},
                         {"the flag before the words", true, call("flags", "plain", exchange::FLAG_FIRST)},
                     });
}
