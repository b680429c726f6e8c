// Included before every C++ file of llama.cpp: gcc before 14 tells its optimiser that
// _tile_loadconfig reads 8 of the 64 bytes, which then drops the stores of the others, and
// llama.cpp's AMX kernels end with a segmentation fault at ldtilecfg.

#ifdef __AMX_TILE__
#include <immintrin.h>
#define _tile_loadconfig(from) __asm__ volatile("ldtilecfg %X0" ::"m"(*(const char(*)[64])(from)))
#endif
