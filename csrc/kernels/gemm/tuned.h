// Written by `python -m bench.tune` from the rows of a GPU run; not by hand.
//
// n, k, experts, e4m3, fast accumulation, up to so many rows of A, 100 * splits + row of
// the table (-1: the model's choice was as good).
{5120, 8192, 1, false, false, 512, -1}, {5120, 8192, 1, false, false, 2048, 101},
    {5120, 8192, 1, true, true, 128, -1}, {5120, 8192, 1, true, true, 2048, 104},
    {5120, 8192, 16, false, false, 4, 308}, {5120, 8192, 16, false, false, 32, 208},
    {5120, 8192, 16, false, false, 128, -1}, {5120, 8192, 16, false, false, 512, 103},
    {5120, 8192, 16, false, false, 2048, 101}, {5120, 8192, 16, true, true, 128, -1},
    {5120, 8192, 16, true, true, 512, 112}, {5120, 8192, 16, true, true, 2048, 104},
    {16384, 5120, 16, true, true, 128, -1}, {16384, 5120, 16, true, true, 512, 112},
    {5120, 5120, 1, false, false, 512, -1}, {5120, 5120, 1, false, false, 2048, 101},
    {5120, 5120, 1, true, true, 128, -1}, {5120, 5120, 1, true, true, 2048, 104},
    {7168, 5120, 1, true, true, 32, -1}, {7168, 5120, 1, true, true, 128, 216},
    {7168, 5120, 1, true, true, 512, 104},
