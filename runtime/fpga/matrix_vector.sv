// The matrix-vector unit in RTL: sums of WEIGHTS [OUTPUTS][INPUTS] times vectors, for PE outputs and
// SIMD inputs at a time (the folding of Umuroglu et al. 2017, FINN). It takes the words that the C++
// template takes, and gives its sums before they are requantised, one word of PE sums after INPUTS /
// SIMD cycles each.
//
// Streams have valid and ready; the whole unit stands while a word of sums is not taken. WEIGHTS
// names a file for $readmemh: one line for each group of PE outputs and each step of SIMD inputs, the
// weight of output o and input i in bits WEIGHT_BITS * (o * SIMD + i) and up.
`default_nettype none

module matrix_vector #(
    parameter int PE = 1,
    parameter int SIMD = 1,
    parameter int INPUTS = 1,
    parameter int OUTPUTS = 1,
    parameter int X_BITS = 8,
    parameter bit X_SIGNED = 1,
    parameter int WEIGHT_BITS = 8,
    parameter bit TERNARY = 0,      // weights are -1, 0 and 1: no multipliers
    parameter int SUM_BITS = 32,
    parameter WEIGHTS = "weights.hex"
) (
    input  wire                     clk,
    input  wire                     rst,
    input  wire                     x_valid,
    output wire                     x_ready,
    input  wire [SIMD*X_BITS-1:0]   x_data,
    output reg                      y_valid,
    input  wire                     y_ready,
    output wire [PE*SUM_BITS-1:0]   y_data
);
    localparam int STEPS = INPUTS / SIMD;
    localparam int GROUPS = OUTPUTS / PE;
    localparam int WORDS = STEPS * GROUPS;
    localparam int STEP_BITS = STEPS > 1 ? $clog2(STEPS) : 1;
    localparam int WORD_BITS = WORDS > 1 ? $clog2(WORDS) : 1;
    localparam int PRODUCT_BITS = X_BITS + (X_SIGNED ? 0 : 1) + WEIGHT_BITS;
    localparam int PART_BITS = PRODUCT_BITS + $clog2(SIMD + 1);

    // One step a cycle: the first group takes the vector from the stream and keeps it for the others.
    wire go = !y_valid || y_ready;
    reg [STEP_BITS-1:0] step;
    reg [WORD_BITS-1:0] word;
    reg first_group;
    assign x_ready = go && first_group;
    wire fire = go && (!first_group || x_valid);
    wire last_step = 32'(step) == STEPS - 1;
    wire last_word = 32'(word) == WORDS - 1;

    reg [SIMD*X_BITS-1:0] held [0:STEPS-1];
    reg [PE*SIMD*WEIGHT_BITS-1:0] rom [0:WORDS-1];
    initial $readmemh(WEIGHTS, rom);

    always_ff @(posedge clk) begin
        if (rst) begin
            step <= '0;
            word <= '0;
            first_group <= 1'b1;
        end else if (fire) begin
            step <= last_step ? '0 : step + 1'b1;
            word <= last_word ? '0 : word + 1'b1;
            if (last_step) first_group <= last_word;
        end
    end

    // Stage 1: the inputs and the weights of a step.
    reg [SIMD*X_BITS-1:0] x1;
    reg [PE*SIMD*WEIGHT_BITS-1:0] w1;
    reg valid1, first1, last1;
    always_ff @(posedge clk) begin
        if (rst) valid1 <= 1'b0;
        else if (go) valid1 <= fire;
        if (fire) begin
            if (first_group) held[step] <= x_data;
            x1 <= first_group ? x_data : held[step];
            w1 <= rom[word];
            first1 <= step == '0;
            last1 <= last_step;
        end
    end

    // Stage 2: products; stage 3: their sum for each output; stage 4: sums over the steps.
    reg valid2, first2, last2, valid3, first3, last3;
    always_ff @(posedge clk) begin
        if (rst) begin
            valid2 <= 1'b0;
            valid3 <= 1'b0;
            y_valid <= 1'b0;
        end else if (go) begin
            valid2 <= valid1;
            valid3 <= valid2;
            y_valid <= valid3 && last3;
        end
        if (go) begin
            {first2, last2} <= {first1, last1};
            {first3, last3} <= {first2, last2};
        end
    end

    for (genvar o = 0; o < PE; o++) begin : output_
        reg signed [PRODUCT_BITS-1:0] products [0:SIMD-1];
        reg signed [PART_BITS-1:0] part;
        reg signed [SUM_BITS-1:0] sum;
        for (genvar i = 0; i < SIMD; i++) begin : input_
            wire [X_BITS-1:0] bits = x1[i*X_BITS +: X_BITS];
            wire signed [X_BITS:0] x = {X_SIGNED && bits[X_BITS-1], bits};
            wire signed [PRODUCT_BITS-1:0] wide = x;
            wire signed [WEIGHT_BITS-1:0] w = w1[(o*SIMD+i)*WEIGHT_BITS +: WEIGHT_BITS];
            always_ff @(posedge clk) if (go) begin
                if (TERNARY)
                    products[i] <= w[0] ? (w[1] ? -wide : wide) : '0;
                else
                    products[i] <= x * w;
            end
        end
        reg signed [PART_BITS-1:0] tree;
        always_comb begin
            tree = '0;
            for (int i = 0; i < SIMD; i++) tree = tree + products[i];
        end
        always_ff @(posedge clk) if (go) begin
            part <= tree;
            if (valid3) sum <= first3 ? part : sum + part;
        end
        assign y_data[o*SUM_BITS +: SUM_BITS] = sum;
    end
endmodule

`default_nettype wire
