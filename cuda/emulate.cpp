// Fibers behind emulate.h. This file itself is built without ThreadSanitizer (PLUMBLINE_TSAN says that the rest is not). Every thread of a block has a stack of its own; it gives way where it must wait.
#include "emulate.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <stdexcept>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(PLUMBLINE_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace plumbline::emulation {
namespace {

constexpr size_t kStackBytes = 256 << 10;

// Order between fibers that ThreadSanitizer may believe in: that of barriers, and of the launch itself.
void release_order(void* address) {
#if defined(PLUMBLINE_TSAN)
  __tsan_release(address);
#else
  (void)address;
#endif
}
void acquire_order(void* address) {
#if defined(PLUMBLINE_TSAN)
  __tsan_acquire(address);
#else
  (void)address;
#endif
}

struct Fiber {
  Thread thread;
  void* jump[5];                // of __builtin_setjmp
  ucontext_t start{};
  char* stack = nullptr;
  bool is_started = false;
  const Barrier* waits_at = nullptr;
  uint64_t passed = 0;          // generation that ends the wait
  Warp* warp = nullptr;
  void* sanitizer = nullptr;    // TSan: its fiber; ASan: its fake stack
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  Barrier block_barrier;
  unsigned alive = 0;
  dim3 block, size, grid;
  Fiber* current = nullptr;
  void* main_jump[5];
  const std::function<void()>* body = nullptr;
  void* main_sanitizer = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_bytes = 0;
  char block_start = 0, block_end = 0;  // their addresses stand for order between a block and what comes before and after it
  alignas(128) unsigned char shared[kSharedBytes];

  ~Machine() {
    for (auto& fiber : fibers) {
      munmap(fiber->stack, kStackBytes);
#if defined(PLUMBLINE_TSAN)
      __tsan_destroy_fiber(fiber->sanitizer);
#endif
    }
  }
};

Machine& machine() {
  static thread_local Machine m;
  return m;
}

// From the scheduler into a fiber, and back when it waits or ends.
[[gnu::noinline]] void enter(Fiber& fiber) {
  Machine& m = machine();
  m.current = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&m.main_sanitizer, fiber.stack, kStackBytes);
#endif
#if defined(PLUMBLINE_TSAN)
  m.main_sanitizer = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(fiber.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  if (__builtin_setjmp(m.main_jump) == 0) {
    if (fiber.is_started) __builtin_longjmp(fiber.jump, 1);
    fiber.is_started = true;
    setcontext(&fiber.start);
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(machine().main_sanitizer, nullptr, nullptr);
#endif
}

[[gnu::noinline]] void leave(Fiber& fiber) {
  Machine& m = machine();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fiber.sanitizer, m.main_stack, m.main_stack_bytes);
#endif
#if defined(PLUMBLINE_TSAN)
  __tsan_switch_to_fiber(m.main_sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  if (__builtin_setjmp(fiber.jump) == 0) __builtin_longjmp(m.main_jump, 1);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(machine().current->sanitizer, &machine().main_stack, &machine().main_stack_bytes);
#endif
}

void fiber_main() {
  Machine& m = machine();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.main_stack, &m.main_stack_bytes);
#endif
  for (;;) {                    // one turn per block: the fiber is used again
    acquire_order(&m.block_start);
    (*m.body)();
    release_order(&m.block_end);
    Fiber& self = *m.current;
    self.waits_at = nullptr;
    --m.alive;
    if (m.alive > 0 && m.block_barrier.arrived == m.alive) m.block_barrier.arrived = 0, ++m.block_barrier.generation;
    leave(self);
  }
}

void make_fibers(unsigned count) {
  Machine& m = machine();
  while (m.fibers.size() < count) {
    auto fiber = std::make_unique<Fiber>();
    void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) throw std::runtime_error("emulated launch: no memory for stacks");
    fiber->stack = static_cast<char*>(stack);
    getcontext(&fiber->start);
    fiber->start.uc_stack.ss_sp = stack;
    fiber->start.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber->start, fiber_main, 0);
#if defined(PLUMBLINE_TSAN)
    fiber->sanitizer = __tsan_create_fiber(0);
#endif
    m.fibers.push_back(std::move(fiber));
  }
}

// Addresses take turns: who comes late to this barrier's end must not be ordered after those already at the next one.
void arrive(Barrier& barrier, unsigned expected, bool makes_order) {
  Machine& m = machine();
  Fiber& self = *m.current;
  char* const order = &barrier.order[barrier.generation % 2];
  if (makes_order) release_order(order);
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
  } else {
    self.waits_at = &barrier;
    self.passed = barrier.generation + 1;
    leave(self);
    self.waits_at = nullptr;
  }
  if (makes_order) acquire_order(order);
}

void run_block(unsigned threads) {
  Machine& m = machine();
  m.alive = threads;
  m.block_barrier = Barrier{};
  m.warps.assign((threads + 31) / 32, Warp{});
  std::vector<char> done(threads, 0);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = *m.fibers[i];
    fiber.thread = Thread{dim3(i % m.size.x, i / m.size.x % m.size.y, i / (m.size.x * m.size.y)), i, i % 32, 0};
    fiber.warp = &m.warps[i / 32];
    fiber.waits_at = nullptr;
  }
  release_order(&m.block_start);
  while (m.alive > 0) {
    bool moved = false;
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = *m.fibers[i];
      if (done[i] || (fiber.waits_at && fiber.waits_at->generation < fiber.passed)) continue;
      const unsigned before = m.alive;
      enter(fiber);
      done[i] = m.alive < before;
      moved = true;
    }
    if (!moved) {
      std::fprintf(stderr, "emulated launch: threads of block %u %u %u wait for each other at different barriers\n", m.block.x, m.block.y, m.block.z);
      std::abort();
    }
  }
}

}  // namespace

Thread& thread() { return machine().current->thread; }
dim3& block_index() { return machine().block; }
dim3& block_size() { return machine().size; }
dim3& grid_size() { return machine().grid; }
void* shared_memory() { return machine().shared; }

void sync_block() { arrive(machine().block_barrier, machine().alive, true); }
void sync_warp(unsigned mask) { arrive(machine().current->warp->barrier, static_cast<unsigned>(__builtin_popcount(mask)), true); }

const Slot* exchange(unsigned mask, const Slot& mine) {
  Fiber& self = *machine().current;
  Slot* slots = self.warp->slots[self.thread.collectives++ % 2];
  slots[self.thread.lane] = mine;
  arrive(self.warp->barrier, static_cast<unsigned>(__builtin_popcount(mask)), false);
  return slots;
}

cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || threads % 32 != 0 || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  if (shared_bytes > kSharedBytes) return cudaErrorInvalidValue;
  Machine& m = machine();
  make_fibers(threads);
  m.body = &body, m.size = block, m.grid = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        m.block = dim3(x, y, z);
        std::memset(m.shared, 0xcb, shared_bytes);  // nothing may rely on zeros
        run_block(threads);
        acquire_order(&m.block_end);
      }
  return cudaSuccess;
}

}  // namespace plumbline::emulation
