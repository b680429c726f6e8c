// Reads a buffer over and over and prints one JSON line: {"gb_s": [...]}, 1e9 bytes per second.
//
//     bandwidth THREADS BYTES PASSES
//
// Nothing is written while the time runs. With -march=native the vectors are the widest registers.

#define _GNU_SOURCE
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef uint64_t vector __attribute__((vector_size(64)));

enum { LINES = 2, AHEAD = 8 };  // a step; how far before it lines are asked for

static uint64_t read_all(const vector *from, size_t count) {
    vector sums[LINES] = {{0}};
    for (size_t i = 0; i < count; i += LINES)
        for (int k = 0; k < LINES; ++k) {
            __builtin_prefetch(from + i + k + AHEAD);  // a fifth more than without it
            sums[k] ^= from[i + k];
        }
    uint64_t sum = 0;
    for (int k = 0; k < LINES; ++k)
        for (int lane = 0; lane < 8; ++lane) sum ^= sums[k][lane];
    return sum;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int threads = atoi(argv[1]), passes = atoi(argv[3]);
    size_t share = strtoull(argv[2], NULL, 10) / threads / sizeof(vector) / LINES * LINES;
    size_t bytes = share * threads * sizeof(vector);
    if (!bytes || passes < 1) return 2;
    vector *buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) return 1;
    madvise(buffer, bytes, MADV_HUGEPAGE);
#pragma omp parallel num_threads(threads)
    memset(buffer + share * omp_get_thread_num(), 1, share * sizeof(vector));
    volatile uint64_t kept = 0;  // what is read is used, or the compiler would drop the loop
    printf("{\"gb_s\": [");
    for (int pass = 0; pass < passes; ++pass) {
        uint64_t sum = 0;
        double start = omp_get_wtime();
#pragma omp parallel num_threads(threads) reduction(^ : sum)
        sum ^= read_all(buffer + share * omp_get_thread_num(), share);
        printf("%s%.3f", pass ? ", " : "", bytes / (omp_get_wtime() - start) / 1e9);
        kept ^= sum;
    }
    printf("]}\n");
}
