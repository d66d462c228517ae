// The static half of a configuration, as the operators take it: fused_rnn_dropout/sites.py in C++.
// A test compares every constant below with that file.
#pragma once

#include <cstdint>

namespace frd {

// Rows of the thresholds tensor.
inline constexpr int SITE_DROPOUT = 0;
inline constexpr int SITE_INPUT_DROPOUT = 1;
inline constexpr int SITE_INTER_LAYER_DROPOUT = 2;
inline constexpr int SITE_OUTPUT_DROPOUT = 3;
inline constexpr int SITE_HIDDEN_DROPOUT = 4;
inline constexpr int SITE_WEIGHT_DROPOUT = 5;
inline constexpr int SITE_UPDATE_DROPOUT = 6;
inline constexpr int SITE_CELL_DROPOUT = 7;
inline constexpr int SITE_ZONEOUT_C = 8;
inline constexpr int SITE_ZONEOUT_H = 9;
inline constexpr int NUM_SITES = 10;

// What the modules call them.
inline constexpr const char* SITE_NAMES[NUM_SITES] = {
    "dropout",        "input_dropout",  "inter_layer_dropout", "output_dropout", "hidden_dropout",
    "weight_dropout", "update_dropout", "cell_dropout",        "zoneout_c",      "zoneout_h"};

// Rows of the rng tensor: the sites that draw from one pair of seeds.
inline constexpr int GROUP_INPUT = 0;
inline constexpr int GROUP_INTER_LAYER = 1;
inline constexpr int GROUP_OUTPUT = 2;
inline constexpr int GROUP_HIDDEN = 3;
inline constexpr int GROUP_WEIGHT = 4;
inline constexpr int GROUP_STATE = 5;
inline constexpr int NUM_GROUPS = 6;

// Bits of `flags`: which sites of a layer are configured, and how.
inline constexpr uint32_t FLAG_DROPOUT = 1u << 0;
inline constexpr uint32_t FLAG_INPUT = 1u << 1;
inline constexpr uint32_t FLAG_INPUT_SEQUENCE = 1u << 2;
inline constexpr uint32_t FLAG_INPUT_BATCH_SHARED = 1u << 3;
inline constexpr uint32_t FLAG_INTER_LAYER = 1u << 4;
inline constexpr uint32_t FLAG_INTER_LAYER_SEQUENCE = 1u << 5;
inline constexpr uint32_t FLAG_INTER_LAYER_BATCH_SHARED = 1u << 6;
inline constexpr uint32_t FLAG_OUTPUT = 1u << 7;
inline constexpr uint32_t FLAG_OUTPUT_SEQUENCE = 1u << 8;
inline constexpr uint32_t FLAG_OUTPUT_BATCH_SHARED = 1u << 9;
inline constexpr uint32_t FLAG_HIDDEN = 1u << 10;
inline constexpr uint32_t FLAG_HIDDEN_BATCH_SHARED = 1u << 11;
inline constexpr uint32_t FLAG_WEIGHT_HH = 1u << 12;
inline constexpr uint32_t FLAG_WEIGHT_IH = 1u << 13;
inline constexpr uint32_t FLAG_WEIGHT_HR = 1u << 14;
inline constexpr uint32_t FLAG_WEIGHT_ROW = 1u << 15;
inline constexpr uint32_t FLAG_UPDATE = 1u << 16;
inline constexpr uint32_t FLAG_UPDATE_SEQUENCE = 1u << 17;
inline constexpr uint32_t FLAG_UPDATE_PAPER = 1u << 18;
inline constexpr uint32_t FLAG_CELL = 1u << 19;
inline constexpr uint32_t FLAG_CELL_SEQUENCE = 1u << 20;
inline constexpr uint32_t FLAG_CELL_PAPER = 1u << 21;
inline constexpr uint32_t FLAG_ZONEOUT_C = 1u << 22;
inline constexpr uint32_t FLAG_ZONEOUT_C_SEQUENCE = 1u << 23;
inline constexpr uint32_t FLAG_ZONEOUT_H = 1u << 24;
inline constexpr uint32_t FLAG_ZONEOUT_H_SEQUENCE = 1u << 25;
inline constexpr uint32_t FLAG_ZONEOUT_H_SHARED = 1u << 26;
inline constexpr uint32_t FLAG_UNZONED = 1u << 27;
// A site between layers masks what the layer below writes, which then takes its flags, not what the one above reads.
inline constexpr uint32_t FLAG_WRITES_BETWEEN = 1u << 28;
inline constexpr uint32_t FLAG_MASKS_ON = 1u << 29;

// The bit by which each site is configured.
inline constexpr uint32_t SITE_FLAGS[NUM_SITES] = {FLAG_DROPOUT,   FLAG_INPUT,     FLAG_INTER_LAYER, FLAG_OUTPUT,
                                                   FLAG_HIDDEN,    FLAG_WEIGHT_HH, FLAG_UPDATE,      FLAG_CELL,
                                                   FLAG_ZONEOUT_C, FLAG_ZONEOUT_H};

}  // namespace frd
