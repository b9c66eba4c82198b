// Runs kernels: cases from the standard input, their buffers as the kernels left them to the standard output.
//
// Everything is 32-bit words of this machine. There is a number of cases, and of each: for the eight storage buffers a number
// of bytes and those bytes; a number of passes; of each a kernel's number, workgroups along x and y, a number of bytes and those
// bytes of parameters. With an argument `flush` subnormal numbers are taken for 0 and made 0, as many GPUs do.
//
// Threads of a workgroup are contexts that run in turn, each to its next barrier. Jumps take them from one to the other, for
// `swapcontext` asks the system twice.

// Its checks take a jump to another stack for a mistake.
#undef _FORTIFY_SOURCE

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include <setjmp.h>
#include <ucontext.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "metal_stdlib"
#undef kernel
#undef device
#undef thread
#undef threadgroup
#undef constant

namespace {

constexpr unsigned THREADS = 256;
constexpr std::size_t STACK = 256 << 10;

ucontext_t contexts[THREADS];
jmp_buf threads[THREADS];
jmp_buf scheduler;
bool has_started[THREADS];
bool has_ended[THREADS];
unsigned current;

hostile::Run running;
const hostile::Bound* bound;
metal::uint3 group, groups;

void leave() {
    if (_setjmp(threads[current]) == 0) {
        _longjmp(scheduler, 1);
    }
}

// A context takes one thread of every workgroup.
void run_threads() {
    for (;;) {
        running(*bound, group, groups, current);
        has_ended[current] = true;
        leave();
    }
}

void resume() {
    if (_setjmp(scheduler) != 0) {
        return;
    }
    if (has_started[current]) {
        _longjmp(threads[current], 1);
    }
    has_started[current] = true;
    setcontext(&contexts[current]);
}

void make_contexts(char* stacks) {
    for (unsigned i = 0; i < THREADS; i += 1) {
        getcontext(&contexts[i]);
        contexts[i].uc_stack.ss_sp = stacks + i * STACK;
        contexts[i].uc_stack.ss_size = STACK;
        makecontext(&contexts[i], run_threads, 0);
    }
}

void run_group() {
    std::memset(has_ended, 0, sizeof has_ended);
    for (bool is_left = true; is_left;) {
        is_left = false;
        for (current = 0; current < THREADS; current += 1) {
            if (!has_ended[current]) {
                resume();
                is_left = is_left || !has_ended[current];
            }
        }
    }
}

void read(void* to, std::size_t bytes) {
    if (std::fread(to, 1, bytes, stdin) != bytes) {
        std::fputs("the input ends early\n", stderr);
        std::exit(1);
    }
}

unsigned read_word() {
    unsigned word;
    read(&word, sizeof word);
    return word;
}

// Aligned as any vector needs it.
struct Block {
    std::size_t bytes;
    std::vector<metal::uint4> units;
    Block() : bytes(read_word()), units(bytes / 16 + 1) { read(units.data(), bytes); }
};

hostile::Run find(unsigned number) {
    for (const auto* known = hostile::Kernel::all; known; known = known->next) {
        if (known->number == number) {
            return known->run;
        }
    }
    std::fprintf(stderr, "there is no kernel %u\n", number);
    std::exit(1);
}

void flush_subnormals() {
#if defined(__x86_64__)
    // FTZ and DAZ.
    _mm_setcsr(_mm_getcsr() | 0x8040);
#elif defined(__aarch64__)
    std::uint64_t fpcr;
    asm volatile("mrs %0, fpcr" : "=r"(fpcr));
    asm volatile("msr fpcr, %0" : : "r"(fpcr | (1 << 24)));
#endif
}

} // namespace

void metal::threadgroup_barrier(metal::mem_flags) {
    leave();
}

int main(int count, char** arguments) {
    if (count > 1 && std::strcmp(arguments[1], "flush") == 0) {
        flush_subnormals();
    }
    const std::unique_ptr<char[]> stacks(new char[THREADS * STACK]);
    make_contexts(stacks.get());
    for (unsigned cases = read_word(); cases > 0; cases -= 1) {
        std::vector<Block> buffers(8);
        for (unsigned passes = read_word(); passes > 0; passes -= 1) {
            running = find(read_word());
            const unsigned x = read_word(), y = read_word();
            Block params;
            hostile::Bound here = {{params.units.data()}};
            for (int i = 0; i < 8; i += 1) {
                here.at[i + 1] = buffers[i].units.data();
            }
            bound = &here;
            groups = metal::uint3 {x, y, 1};
            for (unsigned i = 0; i < x * y; i += 1) {
                group = metal::uint3 {i % x, i / x, 0};
                run_group();
            }
        }
        for (const Block& buffer : buffers) {
            std::fwrite(buffer.units.data(), 1, buffer.bytes, stdout);
        }
    }
    return std::fflush(stdout) == 0 ? 0 : 1;
}
